"""Attention over a cache of 8-bit codes, and the token that joins it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.backends.triton.ops import append_kv, quantize_rows
from qcompiler.backends.triton.ops.attention import PARTS, STEP, format_of
from tests.backends.triton.cases.base import as_on_a_device, guarded, poisoned_row, same

UNIT = 2.0**-24  # float32 rounds by so much, relative
HALF = 2.0**-11  # and float16; what is smaller than 2^-14 it rounds by 2^-25


@dataclass(frozen=True, kw_only=True)
class Cache:
    k: Tensor
    s: Tensor
    v: Tensor
    z: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.k, self.s, self.v, self.z

    def of(self, place: int | slice) -> Cache:
        """Of one sequence, or of some."""
        return Cache(k=self.k[place], s=self.s[place], v=self.v[place], z=self.z[place])


def cache(kind: torch.dtype, B: int, heads: int, S: int, D: int) -> Cache:
    """Of normal numbers: scales differ by powers of two, and token 2 of values is all zeros."""
    sized = 2.0 ** torch.randint(-9, 9, (B * heads * S, 1))
    x, y = torch.randn(2, B * heads * S, D)
    y[2] = 0
    (k, s), (v, z) = (
        quantize_rows(each, "int8" if kind == torch.int8 else "e4m3") for each in (x, y * sized)
    )
    shape = (B, heads, S)
    return Cache(k=k.view(*shape, D), s=s.view(shape), v=v.view(*shape, D), z=z.view(shape))


def exact(
    q: Tensor, cached: Cache, length: int, scale: float, *, tensor_cores: bool
) -> tuple[Tensor, Tensor]:
    """Attention of q [Hq, D] over the first tokens of one sequence, float64, and the bound of its error.

    y' = y + e:   |e| <= |q|.|k| s scale ((D + 4) 2^-24 + h) + 2^-25 power(q) sum|k| s scale
    p' = p (1 + a):                 |a| <= exp(2 max|e|) - 1 + 2^-20, the latter for exponentials
    w' = w (1 + h) + 2^-25 max w:   what tensor cores take
    sums of n terms:                (n + PARTS) 2^-24 of the sum of magnitudes, above and below the line

    h = 2^-11 where q or w are rounded to float16, which q of float16 is not.
    """
    group, D = q.shape[0] // cached.k.shape[0], q.shape[1]
    k, v = (x[:, :length].double().repeat_interleave(group, 0) for x in (cached.k, cached.v))
    s, z = (x[:, :length].double().repeat_interleave(group, 0) for x in (cached.s, cached.z))
    wide, core = q.double()[:, None], float(tensor_cores)
    y = (wide * k).sum(2) * s * scale
    p = y.softmax(1)
    rounded = HALF * core * (q.dtype != torch.float16)
    e = (wide.abs() * k.abs()).sum(2) * s * scale * ((D + 4) * UNIT + rounded)
    e += core * 2.0**-25 * wide.abs().amax(2) * k.abs().sum(2) * s * scale
    relative = torch.expm1(2 * e.amax(1, keepdim=True)) + 2.0**-20 + 2 * (length + PARTS) * UNIT + HALF * core
    w = p * z
    spread = (w[:, :, None] * v.abs()).sum(1)
    bound = relative * spread + core * 2.0**-25 * w.amax(1, keepdim=True) * v.abs().sum(1)
    return (w[:, :, None] * v).sum(1), bound


def stored(wanted: Tensor, bound: Tensor) -> Tensor:
    """The bound of what is rounded to float16 at the end."""
    return bound + HALF * (wanted.abs() + bound) + 2.0**-25


def attended(q: Tensor, cached: Cache, lengths: Tensor, scale: float) -> Tensor:
    """By the kernels: results that nobody wrote are NaN, as is all that lies between the two kernels."""
    from qcompiler.backends.triton.kernels.attention import launch

    out, whole = poisoned_row(q.numel(), q.dtype)
    sums = torch.full((*q.shape[:2], PARTS, q.shape[2]), torch.nan)
    peaks, totals = torch.full((2, *q.shape[:2], PARTS), torch.nan)
    k, s, v, z = (guarded(x) for x in cached.all)
    launch(
        guarded(q), k, s, v, z, guarded(lengths), scale, out.view(q.shape), sums, peaks, totals, STEP, {}, {}
    )
    assert (whole[1:] == 77).all() and (whole[0, q.numel() :] == 77).all()
    return out.view(q.shape)


def attention(
    kind: torch.dtype, Hq: int, heads: int, S: int, D: int, lengths: list[int], dtype: torch.dtype
) -> None:
    cached, q = cache(kind, len(lengths), heads, S, D), torch.randn(len(lengths), Hq, D).to(dtype)
    found = attended(q, cached, torch.tensor(lengths), D**-0.5)
    for b, length in enumerate(lengths):
        if length == 0:
            assert not found[b].any()
            continue
        wanted, bound = exact(q[b], cached.of(b), min(length, S), D**-0.5, tensor_cores=True)
        bound = stored(wanted, bound) if dtype == torch.float16 else bound
        assert wanted.abs().max() > 20 * bound.max(), "the bound would not notice much"
        assert ((found[b].double() - wanted).abs() <= bound).all()


def nan_stays_with_its_heads() -> None:
    """A key's scale, a value's scale and a query, of one head each; and numbers beyond float16."""
    cached, q = cache(torch.int8, 2, 4, 70, 16), torch.randn(2, 8, 16)
    cached.s[0, 0, 69], cached.z[0, 1, 3], q[1, 7, 5] = torch.nan, torch.nan, torch.nan
    cached.z[1, 0] *= 1e30
    q[1, 4] *= 1e6
    found = attended(q, cached, torch.tensor([70, 69], dtype=torch.int32), 1e-2)
    assert found.isnan().all(2).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 7]]
    assert found.isnan().any(2).sum() == 5 and not found.isinf().any()
    assert attended(q[:1], cached.of(slice(1)), torch.tensor([69]), 1e-2).isnan().any(2).sum() == 2


def appended(kind: torch.dtype, heads: int, D: int, dtype: torch.dtype) -> None:
    """Bit by bit, at its place and nowhere else: the last, the first, and two that are not in the cache."""
    from qcompiler.backends.triton.kernels.cache import launch

    positions = torch.tensor([8, 0, 9, -1])
    k, v = torch.randn(2, 4, heads, D).to(dtype)
    k[0, 1, 3], v[0, 0, 1], v[1, 0] = torch.nan, torch.inf, 0.0
    wanted = cache(kind, 4, heads, 9, D)
    found = [*map(guarded, wanted.all)]
    append_kv(*wanted.all, k, v, positions)
    assert wanted.s[0, 1, 8].isnan() and wanted.z[0, 0, 8].isnan() and wanted.z[1, 0, 0] == 1
    token, at = (guarded(k), guarded(v)), guarded(positions)
    launch(found[0], found[1], found[2], found[3], *token, at, format_of(wanted.k), 4, {})
    assert all(map(same, found, wanted.all))


def on_a_device(kind: torch.dtype, D: int) -> None:
    """A step of decoding with all that happens on a CUDA device, but for the device."""
    from qcompiler.backends.triton.ops import attention as ops

    wanted = cache(kind, 2, 2, 70, D)
    found = Cache(k=wanted.k.clone(), s=wanted.s.clone(), v=wanted.v.clone(), z=wanted.z.clone())
    q, k, v, at = torch.randn(4, 2, D).half().transpose(0, 1), *torch.randn(2, 2, 2, D), torch.tensor([69, 3])
    append_kv(*wanted.all, k, v, at)
    with as_on_a_device(ops):
        ops.append_on_cuda(*found.all, k, v, at)
        y = ops.decode_on_cuda(q, *found.all, at + 1, D**-0.5)
    assert all(map(same, found.all, wanted.all)) and y.shape == q.shape
    for b in range(2):
        expected, bound = exact(q[b], found.of(b), int(at[b]) + 1, D**-0.5, tensor_cores=True)
        assert ((y[b].double() - expected).abs() <= stored(expected, bound)).all()


INT8, E4M3, HALVES, FLOATS = torch.int8, torch.float8_e4m3fn, torch.float16, torch.float32

ATTENTION: Mapping[str, Callable[[], None]] = {
    "attention over int8, aligned": lambda: attention(INT8, 4, 2, 128, 64, [128], HALVES),
    "attention over int8, ragged, of several parts": lambda: attention(
        INT8, 6, 2, 300, 48, [300, 0, 1, 65], FLOATS
    ),
    "attention over int8, more heads than a program has, more tokens than there are": lambda: attention(
        INT8, 18, 1, 70, 16, [99], HALVES
    ),
    "attention over int8, more than a step in a part": lambda: attention(
        INT8, 1, 1, PARTS * STEP + 7, 16, [PARTS * STEP + 7], HALVES
    ),
    "attention over e4m3, ragged": lambda: attention(E4M3, 2, 2, 70, 80, [70, 64], HALVES),
    "attention on a device, int8": lambda: on_a_device(INT8, 144),
    "attention on a device, e4m3": lambda: on_a_device(E4M3, 16),
    "attention with NaN": nan_stays_with_its_heads,
    "a token joins a cache of int8, aligned": lambda: appended(INT8, 2, 64, HALVES),
    "a token joins a cache of e4m3, ragged": lambda: appended(E4M3, 3, 48, FLOATS),
}
