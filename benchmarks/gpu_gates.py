"""Checks of the kernels before anything is timed: whole tiles and ragged ones, rows of zeros and of NaN.

A check compares what a device computes with float64, or with what the CPU computes bit by bit where that is
promised. An op that fails one is not timed at all.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_decoder, gpu_rows, gpu_trained, gpu_weights
from benchmarks.gpu_contest import (
    ABSENT,
    OK,
    OPS,
    SKIPPED,
    WRONG,
    Cell,
    Clock,
    Figure,
    always_right,
    blank,
    op,
    reason,
)
from qcompiler.backends.triton.layouts import restored
from qcompiler.backends.triton.ops.linear import finished
from qcompiler.backends.triton.ops.quantize import CODES
from qcompiler.backends.triton.tuning.bench import Contenders
from qcompiler.backends.triton.tuning.gate import lost, relative
from qcompiler.backends.triton.tuning.rows import EPS
from qcompiler.numerics.hadamard import transform

Found = tuple[float, float]
"""An error, and how large it may be."""
SIZES = ((256, 256, 256), (100, 72, 80))
U = 2.0**-24  # half a unit in the last place of float32, of 1
ROUNDED = {"quantize_rows": 2, "quantize_both": 2, "norm_quantize": 13, "hadamard_quantize": 70}
"""How many U the ratio x / s may be off where codes are made of it, relative to the largest of a row.

A quotient and a scale are rounded once. A norm of 256 has 8 levels of sums, halved by the root, and four
factors. A transform of 16 adds 4 times what is at most 16 times as large as its largest result.
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    op: str
    scheme: str
    needs: tuple[str, ...]
    run: Callable[[torch.device], Found]


def figures(
    stage: str, checks: Iterable[Check], device: torch.device, *, until: float, clock: Clock
) -> Iterator[Figure]:
    """One for each check, as they come. One that there is no time for stops nothing: cells have gates too."""
    for check in checks:
        cell = Cell(op=check.op, scheme=check.scheme, needs=check.needs, prepare=nobody)
        if cell.absent or clock() > until:
            yield blank(stage, cell, ABSENT if cell.absent else SKIPPED, cell.absent)
            continue
        try:
            error, allowed = check.run(device)
        except Exception as failure:  # a kernel that cannot run is not right
            yield blank(stage, cell, WRONG, reason(failure), "triton")
            continue
        right = error <= allowed  # and not where it is NaN
        why = "" if right else f"its error is {error:.2e}, and {allowed:.2e} is allowed"
        yield Figure(
            stage=stage, op=check.op, scheme=check.scheme, M=0, N=0, K=0, contender="triton",
            status=OK if right else WRONG, reason=why, error=error,
        )  # fmt: skip


def tried(place: int, has_fp8: bool) -> None:
    """Run one check on the GPU for what it leaves behind, which is compiled kernels; who checks, tells."""
    with suppress(Exception):
        [*checks(has_fp8)][place].run(torch.device("cuda"))


def nobody(device: torch.device) -> Contenders:
    return Contenders(calls={}, copies=1, wrong=always_right)


def checks(has_fp8: bool = True) -> Iterator[Check]:
    formats = ("int8", "e4m3") if has_fp8 else ("int8",)
    for format, (M, _, K) in product(formats, SIZES):
        size = f"{format} {M} x {K}"
        yield row("quantize_rows", size, "quantize", partial(codes, "quantize_rows", format, M, K))
        yield row("quantize_both", size, "quantize_both", partial(both, format, M, K))
        yield row("norm_quantize", size, "norm", partial(codes, "norm_quantize", format, M, K))
        yield row("hadamard_quantize", size, "hadamard", partial(codes, "hadamard_quantize", format, M, K))
    for M, N, K in SIZES:
        yield row("int8_linear", f"{M} x {N} x {K}", "linear", partial(int8_linear, M, N, K))
        for mode in ("fast", "promote128") if has_fp8 else ():
            yield row("fp8_linear", f"{mode} {M} x {N} x {K}", "linear", partial(fp8_linear, mode, M, N, K))
    for M, scheme in product((1, 5, 64, 130), gpu_weights.SCHEMES):
        yield row(gpu_weights.OP, f"{scheme} M {M}", "weight_only", partial(weight_only, scheme, M))
    for kind in gpu_rows.KINDS:
        if kind.op in ("store", "recall"):
            yield row(kind.op, kind.scheme, "install", partial(contenders, partial(
                gpu_rows.prepare, kind, 96, 64
            )))  # fmt: skip
    for format in formats:
        made = partial(gpu_trained.prepare, format, 144, 80, 48)
        yield row(gpu_trained.OP, format, "training", partial(contenders, made))
        made = partial(gpu_decoder.attention, format, 2, 200, 8, 2, 64)
        yield row(gpu_decoder.OP, format, "attention", partial(contenders, made))


def row(op: str, scheme: str, module: str, run: Callable[[torch.device], Found]) -> Check:
    return Check(op=op, scheme=scheme, needs=(f"{OPS}{module}",), run=run)


def hard(M: int, K: int, device: torch.device) -> Tensor:
    """Normal numbers in bfloat16, an outlier, a row of zeros and one with NaN."""
    x = torch.randn(M, K, device=device).bfloat16()
    x[0, 0], x[1], x[2, 3] = 500.0, 0.0, torch.nan
    return x


# ---------------------------------------------------------------- codes


def codes(name: str, format: str, M: int, K: int, device: torch.device) -> Found:
    """|y / s - q| in steps, beside half of one; infinite where bits are not the CPU's, or NaN is lost."""
    x, weight = hard(M, K, device), torch.rand(K, device=device).bfloat16()
    made, wide = MADE[name](x, weight, format), WIDE[name](x, weight)
    there = MADE[name](x.cpu(), weight.cpu(), format)
    is_same = all(same(one.cpu(), other) for one, other in zip(made, there, strict=True))
    return off(name, made[0][:, :K], made[1], wide, format) if is_same else float("inf"), 0.5


def both(format: str, M: int, K: int, device: torch.device) -> Found:
    x = hard(M, K, device)
    made, there = op("quantize_both")(x, format), op("quantize_both")(x.cpu(), format)
    is_same = all(same(one.cpu(), other) for one, other in zip(made, there, strict=True))
    q, s, r, t = made
    pairs = ((q[:, :K], s, x.double()), (r[:, :M], t, x.double().t()))
    found = max(off("quantize_both", *pair, format) for pair in pairs)
    return found if is_same else float("inf"), 0.5


def off(name: str, q: Tensor, s: Tensor, wide: Tensor, format: str) -> float:
    """The largest distance of a code from x / s, in steps; NaN has to be where it belongs."""
    q, is_good = q.float(), wide.isfinite().all(1)
    if not torch.equal(s.isfinite(), is_good) or q[~is_good].abs().sum() > 0:
        return float("inf")
    ratio = (wide / s.double()[:, None])[is_good]
    step = torch.ones_like(ratio)
    if format != "int8":  # three bits behind the first, and no step below 2^-9
        step = 2.0 ** (ratio.abs().clamp(min=2.0**-6).log2().floor() - 3)
    slack = ROUNDED[name] * U * CODES[format][1]
    return float((((q[is_good].double() - ratio).abs() - slack) / step).max())


def same(found: Tensor, wanted: Tensor) -> bool:
    left, right = found.float(), wanted.float()
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(left.nan_to_num(), right.nan_to_num())


def normed(x: Tensor, weight: Tensor, format: str) -> tuple[Tensor, ...]:
    made = op("norm_quantize")(x, None, weight, None, None, "rms", EPS, format, False)
    return made[0], made[1]


def rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide * (wide.square().mean(1, keepdim=True) + EPS).rsqrt() * weight.double()


BLOCK = 16
MADE: dict[str, Callable[[Tensor, Tensor, str], Any]] = {
    "quantize_rows": lambda x, weight, format: op("quantize_rows")(x, format),
    "norm_quantize": normed,
    "hadamard_quantize": lambda x, weight, format: op("hadamard_quantize")(x, BLOCK, format),
}
WIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quantize_rows": lambda x, weight: x.double(),
    "norm_quantize": rms,
    "hadamard_quantize": lambda x, weight: transform(x.double(), BLOCK),
}


# ---------------------------------------------------------------- products


def operands(M: int, N: int, K: int, format: str, device: torch.device) -> tuple[Tensor, ...]:
    """Codes and scales of both, and a bias. K is a multiple of 16, so no zeros are behind the last code."""
    w = torch.randn(N, K, device=device)
    return (*op("quantize_rows")(hard(M, K, device), format), *op("quantize_rows")(w, format))


def int8_linear(M: int, N: int, K: int, device: torch.device) -> Found:
    """How many numbers are not those of exact sums: none."""
    a, s, b, t = operands(M, N, K, "int8", device)
    bias = torch.randn(N, device=device)
    found = op("int8_linear")(a, s, b, t, bias, None, "none", torch.bfloat16)
    sums = (a.double() @ b.double().t()).float()
    wanted = finished(sums, s, t, bias, None, "none", torch.bfloat16)
    is_nan = not torch.equal(found.isnan(), wanted.isnan())
    return float((found.nan_to_num() != wanted.nan_to_num()).sum()) + is_nan, 0.0


def fp8_linear(mode: str, M: int, N: int, K: int, device: torch.device) -> Found:
    a, s, b, t = operands(M, N, K, "e4m3", device)
    found = op("fp8_linear")(a, s, b, t, None, None, "none", mode, torch.bfloat16)
    wanted = (a.double() * s.double()[:, None]) @ (b.double() * t.double()[:, None]).t()
    return relative(found, wanted, lost(mode, K))


def weight_only(scheme: str, M: int, device: torch.device) -> Found:
    x = hard(M, 256, device) if M > 2 else torch.randn(M, 256, device=device).bfloat16()
    w = gpu_weights.weight(scheme, 192, 256, device)
    return relative(gpu_weights.linear(x, w), x.double() @ restored(w).double().t())


def contenders(prepare: Callable[[torch.device], Contenders], device: torch.device) -> Found:
    """Of a cell with a check of its own: how many of its contenders are wrong."""
    made = prepare(device)
    wrong = [made.wrong(name, made.calls[name](0)) for name in made.calls]
    first = next((why for why in wrong if why), "")
    if first:
        raise ValueError(first)
    return 0.0, 0.0
