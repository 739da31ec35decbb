"""A decoder on a GPU: attention of one token over a cache in 8 bits, and a layer of a model of a billion.

    prefill    norm + codes, int8 products (q k v together, gate and up together), attention in bfloat16
    decode     products with 4-bit weights, attention over codes                   a token a sequence

Both beside the same layer in bfloat16 by torch.compile. A layer of ours is our ops one after the other, as a
graph of them runs: what is between them is torch's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import gpu_weights
from benchmarks.gpu_contest import OPS, Cell, op
from qcompiler.backends.triton.layouts import restored
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.products import weights

OP, NEEDS = "decode_attention", f"{OPS}attention"
DTYPE, EPS = torch.bfloat16, 1e-6
COARSE = 16  # steps of one: queries on this grid have 11 bits, and rounding them to those changes nothing
BITS = 2.0**-12  # half a unit of 11 bits, which the kernel keeps of probabilities
SURE = 4.0  # times the error that independent roundings are expected to have


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Sizes of one layer; heads of the cache are shared by neighbours. format: of activations and cache."""

    width: int
    hidden: int
    heads: int
    kv_heads: int

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def both(self) -> int:
        """Outputs of keys and values."""
        return 2 * self.kv_heads * self.head


BILLION = Layer(width=2048, hidden=8192, heads=16, kv_heads=16)
TINY = Layer(width=64, hidden=128, heads=2, kv_heads=1)


# ---------------------------------------------------------------- attention


def attentions(small: bool) -> Iterator[Cell]:
    sizes = ((2, 96),) if small else ((16, 4096), (16, 1024), (16, 16384), (1, 16384))
    for (sequences, tokens), format in product(sizes, ("int8", "e4m3")):
        heads, kv_heads, head = (4, 2, 16) if small else (32, 8, 128)
        count = 2 * sequences * kv_heads * tokens
        yield Cell(
            op=OP, scheme=format, M=sequences, N=tokens, K=head,
            prepare=partial(attention, format, sequences, tokens, heads, kv_heads, head), needs=(NEEDS,),
            kernel="decode_parts",
            bytes=lambda name, count=count, head=head: (  # type: ignore[misc]
                count * (2.0 * head if name == FLOAT else head + 4.0)
            ),
        )  # fmt: skip


def attention(
    format: str, sequences: int, tokens: int, heads: int, kv_heads: int, head: int, device: torch.device
) -> Contenders:
    shape = (sequences, kv_heads, tokens, head)
    q = torch.randn(sequences, heads, head, device=device)
    q = ((q * COARSE).round() / COARSE).to(DTYPE)
    lengths = torch.full((sequences,), tokens, dtype=torch.int32, device=device)
    scale = head**-0.5

    def floats() -> tuple[Tensor, Tensor]:
        k, v = (torch.randn(shape, device=device).to(DTYPE) for _ in range(2))
        return k, v

    def cache() -> tuple[Tensor, ...]:
        made = [quantize_rows(one.flatten(0, 2), format) for one in floats()]
        return tuple(part for codes, scales in made for part in (codes.view(shape), scales.view(shape[:3])))

    copies = copies_of(2 * sequences * kv_heads * tokens * head, device)
    held = [cache() for _ in range(copies)]
    wide = [floats() for _ in range(-(-copies // 2))]

    def plain(copy: int) -> Tensor:
        k, v = wide[copy % len(wide)]
        y = F.scaled_dot_product_attention(q[:, :, None], k, v, scale=scale, enable_gqa=heads != kv_heads)
        return y[:, :, 0]

    def wrong(name: str, found: Tensor) -> str:
        return "" if name == FLOAT else far(found, q, held[0], scale)

    return Contenders(
        calls={format: lambda copy: op(OP)(q, *held[copy], lengths, scale), FLOAT: plain}, copies=copies,
        wrong=wrong,
    )  # fmt: skip


def far(found: Tensor, q: Tensor, cache: tuple[Tensor, ...], scale: float) -> str:
    """Why attention is wrong: further from float64's than its roundings are expected to bring it.

    p_t z_t is rounded to 11 bits, of the largest: an error of 2^-12 max p z / sqrt 3 for each, independent of
    one another, times v_t. To that comes the result's own rounding.
    """
    k, s, v, z = cache
    B, heads, _, D = k.shape
    grouped = q.double().view(B, heads, -1, D)
    p = ((grouped @ k.double().mT) * s.double()[:, :, None] * scale).softmax(3) * z.double()[:, :, None]
    wanted = p @ v.double()
    rounding = BITS / 3**0.5 * p.amax(3) * v.double().square().sum((2, 3)).sqrt()[:, :, None]
    floor = (wanted.to(found.dtype).double() - wanted).norm()
    error, limit = (found.double().view_as(wanted) - wanted).norm(), SURE * rounding.norm() + 1.5 * floor
    return "" if error <= limit else f"its error is {error:.2e}, and {limit:.2e} is allowed"


# ---------------------------------------------------------------- a layer

PREFILL, DECODE = (f"{OPS}norm",), (gpu_weights.NEEDS, NEEDS)


def layers(small: bool) -> Iterator[Cell]:
    sizes = TINY if small else BILLION
    for tokens in (16,) if small else (2048,):
        yield layer_cell("prefill", PREFILL, 1, tokens, sizes, prefill, small)
    for sequences, tokens in ((2, 16),) if small else ((1, 4096), (16, 4096)):
        yield layer_cell("decode", DECODE, sequences, tokens, sizes, decode, small)


def layer_cell(
    scheme: str, needs: tuple[str, ...], sequences: int, tokens: int, sizes: Layer,
    prepare: Callable[..., Contenders], small: bool,
) -> Cell:  # fmt: skip
    return Cell(
        op="layer", scheme=scheme, M=sequences, N=tokens, K=sizes.width, needs=needs,
        prepare=partial(prepare, sizes, sequences, tokens, small),
    )  # fmt: skip


def matrices(of: Layer, device: torch.device) -> dict[str, Tensor]:
    shapes = {
        "qkv": (of.width + of.both, of.width), "o": (of.width, of.width), "up": (2 * of.hidden, of.width),
        "down": (of.width, of.hidden),
    }  # fmt: skip
    return {name: weights(*shape, DTYPE, device) for name, shape in shapes.items()}


def plain_layer(of: Layer, w: dict[str, Tensor], g: Tensor, attend: Callable[..., Tensor]) -> Any:
    """The layer in bfloat16 on rows [T, width]; attend: of q, k, v as rows."""

    def layer(x: Tensor) -> Tensor:
        qkv = F.linear(F.rms_norm(x, (of.width,), g, EPS), w["qkv"])
        h = x + F.linear(attend(*split(of, qkv)), w["o"])
        gate, up = F.linear(F.rms_norm(h, (of.width,), g, EPS), w["up"]).chunk(2, 1)
        return h + F.linear(F.silu(gate) * up, w["down"])

    return layer


def split(of: Layer, qkv: Tensor) -> tuple[Tensor, ...]:
    kv = of.both // 2
    return torch.split(qkv, [of.width, kv, kv], 1)


def compiled(layer: Any, small: bool) -> Any:
    """By torch.compile, but in small, where compiling would take longer than everything else."""
    return layer if small else torch.compile(layer, fullgraph=True, dynamic=False)


def contest(
    ours: Callable[[Tensor, int], Tensor], plain: Any, few: Any, x: Tensor, copies: int, small: bool
) -> Contenders:
    """few: the layer in bfloat16 on what codes of weights stand for, which is near ours."""
    built = compiled(plain, small)
    with torch.no_grad():
        wanted = few(x).double()

    @torch.no_grad()
    def call(layer: Callable[[Tensor, int], Tensor], copy: int) -> Tensor:
        return layer(x, copy)

    def wrong(name: str, found: Tensor) -> str:
        """Layers in few bits are near, not equal: codes of activations have 8 bits. Garbage is not near."""
        if name == FLOAT:
            return ""
        error = float((found.double() - wanted).norm() / wanted.norm())
        return "" if error <= NEAR else f"its error is {error:.3f}, and {NEAR} is allowed"

    calls = {"triton": partial(call, ours), FLOAT: partial(call, lambda x, copy: built(x))}
    return Contenders(calls=calls, copies=copies, wrong=wrong)


NEAR = 0.05  # of the result: the step of 8 bits is 2^-7 of a row's largest, about 1 % of a product


def prefill(of: Layer, sequences: int, tokens: int, small: bool, device: torch.device) -> Contenders:
    x = torch.randn(sequences * tokens, of.width, device=device).to(DTYPE)
    w, g = matrices(of, device), torch.ones(of.width, device=device, dtype=DTYPE)
    few = {name: quantize_rows(one, "int8") for name, one in w.items()}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (one.view(sequences, tokens, -1, of.head).transpose(1, 2) for one in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=of.heads != of.kv_heads)
        return y.transpose(1, 2).reshape(sequences * tokens, of.width)

    def linear(name: str, x: tuple[Tensor, Tensor], residual: Tensor | None = None) -> Tensor:
        y: Tensor = op("int8_linear")(*x, *few[name], None, residual, "none", DTYPE)
        return y

    def normed(x: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales, _, _ = op("norm_quantize")(x, None, g, None, None, "rms", EPS, "int8", False)
        return codes, scales

    def ours(x: Tensor, copy: int) -> Tensor:
        qkv = linear("qkv", normed(x))
        h = linear("o", quantize_rows(attend(*split(of, qkv)), "int8"), x)
        gate, up = linear("up", normed(h)).chunk(2, 1)
        return linear("down", quantize_rows(F.silu(gate) * up, "int8"), h)

    kept = {name: (codes.float() * scales[:, None]).to(DTYPE) for name, (codes, scales) in few.items()}
    return contest(ours, plain_layer(of, w, g, attend), plain_layer(of, kept, g, attend), x, 1, small)


def decode(of: Layer, sequences: int, tokens: int, small: bool, device: torch.device) -> Contenders:
    """One token of each sequence; the cache has the others, and the new one is not put into it.

    There are many layers of ours, since one has so few bytes that they would stay in L2.
    """
    x = torch.randn(sequences, of.width, device=device).to(DTYPE)
    w, g = matrices(of, device), torch.ones(of.width, device=device, dtype=DTYPE)
    scheme = gpu_weights.SCHEMES[1 if small else 0]
    packed = {name: gpu_weights.weight(scheme, len(one), one.shape[1], device) for name, one in w.items()}
    few = {name: (one.codes, one.scales) for name, one in packed.items()}
    shape = (sequences, of.kv_heads, tokens, of.head)
    k, v = (torch.randn(shape, device=device).to(DTYPE) for _ in range(2))
    cache = [quantize_rows(one.flatten(0, 2), "int8") for one in (k, v)]
    parts = [part for codes, scales in cache for part in (codes.view(shape), scales.view(shape[:3]))]
    lengths = torch.full((sequences,), tokens, dtype=torch.int32, device=device)
    copies = copies_of(sum(one.nbytes for pair in few.values() for one in pair), device)
    layers = [
        ({name: [one.clone() for one in pair] for name, pair in few.items()}, [one.clone() for one in parts])
        for _ in range(copies)
    ]

    def attend(q: Tensor, *_: Tensor) -> Tensor:
        wide = q.view(sequences, of.heads, 1, of.head)
        y = F.scaled_dot_product_attention(wide, k, v, enable_gqa=of.heads != of.kv_heads)
        return y.reshape(sequences, of.width)

    def linear(weight: list[Tensor], x: Tensor, residual: Tensor | None = None, gate: bool = False) -> Tensor:
        y: Tensor = op(gpu_weights.OP)(
            x, *weight, None, None, residual, scheme, gate, "silu" if gate else "none", DTYPE
        )
        return y

    def ours(x: Tensor, copy: int) -> Tensor:
        held, kv = layers[copy]
        q, _, _ = split(of, linear(held["qkv"], F.rms_norm(x, (of.width,), g, EPS)))
        heads = q.reshape(sequences, of.heads, of.head)
        y = op(OP)(heads, *kv, lengths, of.head**-0.5)
        h = linear(held["o"], y.view(sequences, of.width), x)
        return linear(held["down"], linear(held["up"], F.rms_norm(h, (of.width,), g, EPS), gate=True), h)

    kept = {name: restored(one).to(DTYPE) for name, one in packed.items()}
    plain, near = plain_layer(of, w, g, attend), plain_layer(of, kept, g, attend)
    return contest(ours, plain, near, x, copies, small)
