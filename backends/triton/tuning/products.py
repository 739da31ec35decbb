"""The contenders of a product of codes: our kernels, a vendor's, and the float product.

Numbers are random, activations with an outlier in a thousand: zeros would draw less power than real ones, and
run faster. A vendor's products and the float one are the functions that models run (`engine.candidates`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.engine.candidates import (
    float_linear,
    int_mm,
    scaled_mm,
    scaled_mm_of_blocks,
)
from qcompiler.backends.triton.ops import blocks
from qcompiler.backends.triton.ops.linear import adding, finished, fp8_linear, int8_linear
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.signatures import kernel_named
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.families import FLOAT, WIDTHS, mode_of
from qcompiler.backends.triton.tuning.families.base import format_of
from qcompiler.backends.triton.tuning.gate import lost, too_far
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.numerics import ROW_BLOCK, SQUARE_BLOCK
from qcompiler.numerics.block_codes import decoded

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SAMPLED = 256  # rows that are compared
QUANTIZED = " + quantize"  # behind a contender's name: it makes the codes of x as well

Codes = Callable[[], tuple[Tensor, Tensor]]
"""Of x, with their scales: there already, or made at every call."""


def activations(M: int, K: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal numbers, one in a thousand of them 20 times as large."""
    x = torch.randn(M, K, device=device)
    return torch.where(torch.rand(M, K, device=device) < 1e-3, 20 * x, x).to(dtype)


def weights(N: int, K: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (torch.randn(N, K, device=device) / math.sqrt(K)).to(dtype)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How both operands get codes, what these mean in float64, and the op that multiplies them.

    rows: of those that are picked. mode: how sums are made. scaled_mm: a vendor's product of FP8.
    """

    of_rows: Callable[[Tensor], tuple[Tensor, Tensor]]
    of_weight: Callable[[Tensor], tuple[Tensor, Tensor]]
    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    weight: Callable[[Tensor, Tensor], Tensor]
    op: Callable[..., Tensor]
    mode: str
    scaled_mm: Callable[..., Tensor]


def scheme_of(problem: Problem) -> Scheme:
    if problem.op == "fp8_block_linear":
        return Scheme(
            of_rows=blocks.quantize_blocks, of_weight=blocks.quantize_tiles,
            rows=lambda a, s, picked: decoded(a.float()[picked], s.t()[picked], ROW_BLOCK),
            weight=lambda b, t: decoded(b, t, SQUARE_BLOCK), op=blocks.fp8_block_linear,
            mode="promote128", scaled_mm=scaled_mm_of_blocks,
        )  # fmt: skip
    made = partial(quantize_rows, format=format_of(problem))
    mode, is_fp8 = mode_of(problem), problem.op == "fp8_linear"
    return Scheme(
        of_rows=made, of_weight=made,
        rows=lambda a, s, picked: a.float()[picked].double() * s[picked].double()[:, None],
        weight=lambda b, t: b.double() * t.double()[:, None],
        op=partial(fp8_linear, accumulation=mode) if is_fp8 else int8_linear,
        mode=mode, scaled_mm=partial(scaled_mm, accumulation=mode),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What contenders read: x [M, K], its codes a of scales s, a weight's b of t, and what sums end with."""

    x: Tensor
    a: Tensor
    s: Tensor
    b: Tensor
    t: Tensor
    bias: Tensor
    residual: Tensor | None
    activation: str


def operands(problem: Problem, scheme: Scheme, device: torch.device) -> Operands:
    M, N, K, dtype = problem.M, problem.N, problem.K, DTYPES[problem.out]
    x, bias = activations(M, K, dtype, device), torch.randn(N, device=device)
    residual = torch.randn(M, N, device=device).to(dtype) if problem.heavy else None
    (a, s), (b, t) = scheme.of_rows(x), scheme.of_weight(weights(N, K, dtype, device))
    return Operands(
        x=x, a=a, s=s, b=b, t=t, bias=bias, residual=residual,
        activation="gelu" if problem.heavy else "none",
    )  # fmt: skip


def contenders(
    problem: Problem,
    configurations: Mapping[str, Configuration],
    peers: Sequence[str],
    device: torch.device,
    *,
    quantized: bool = False,
) -> Contenders:
    """Of an int8 or FP8 product on codes that are there already, and where asked each with the codes of x.

    On a CPU every configuration is the op's reference.
    """
    M, N, K, dtype = problem.M, problem.N, problem.K, DTYPES[problem.out]
    scheme = scheme_of(problem)
    given = operands(problem, scheme, device)
    x, t, bias, residual, activation = given.x, given.t, given.bias, given.residual, given.activation
    copies = copies_of(N * K, device)
    codes = [given.b.clone() for _ in range(copies)]
    floats = [weights(N, K, dtype, device) for _ in range(copies_of(N * K * WIDTHS[problem.out], device))]
    out, cast = torch.empty(M, N, dtype=dtype, device=device), bias.to(dtype)
    behind = (residual, activation, dtype)

    def ours(configuration: Configuration, rows: Codes) -> Callable[[int], Tensor]:
        from qcompiler.backends.triton.kernels.launching import launch_product

        kernel = kernel_named(configuration.kernel)

        def call(copy: int) -> Tensor:
            a, s = rows()
            launch_product(
                kernel, a, codes[copy], out, s, t, bias, residual, activation, configuration.constants,
                configuration.options, total=adding(configuration, device),
            )  # fmt: skip
            return out

        return call

    def reference(configuration: Configuration, rows: Codes) -> Callable[[int], Tensor]:
        def call(copy: int) -> Tensor:
            a, s = rows()
            return scheme.op(a, s, codes[copy], t, bias, residual, activation, dtype=dtype)

        return call

    def float_product(copy: int) -> Tensor:
        return float_linear(x, None, floats[copy % len(floats)], None, cast, *behind)

    def vendor(compute: Callable[..., Tensor], rows: Codes, copy: int) -> Tensor:
        a, s = rows()
        return compute(a, s, codes[copy], t, bias, *behind)

    vendors: Mapping[str, Callable[..., Tensor]] = {
        "int_mm": int_mm, "scaled_mm": scheme.scaled_mm
    }  # fmt: skip
    make = reference if device.type == "cpu" else ours
    calls: dict[str, Callable[[int], Tensor]] = {}
    inputs: list[tuple[str, Codes]] = [("", lambda: (given.a, given.s))]
    if quantized:
        inputs.append((QUANTIZED, lambda: scheme.of_rows(x)))
    for suffix, rows in inputs:
        calls |= {f"{name}{suffix}": make(one, rows) for name, one in configurations.items()}
        calls |= {f"{name}{suffix}": partial(vendor, vendors[name], rows) for name in peers if name != FLOAT}
    if FLOAT in peers:
        calls[FLOAT] = float_product
    return Contenders(calls=calls, copies=copies, wrong=gate(problem, scheme, given))


def gate(problem: Problem, scheme: Scheme, given: Operands) -> Callable[[str, Tensor], str]:
    """Why the numbers of a contender are wrong, on some rows: against float64, and exact sums to the bit."""
    dtype, x = DTYPES[problem.out], given.x
    sampled = torch.randperm(problem.M, device=x.device)[:SAMPLED]
    beside = given.residual if given.residual is None else given.residual[sampled]
    y = scheme.rows(given.a, given.s, sampled) @ scheme.weight(given.b, given.t).t()
    wanted = exact(y, given.bias, beside)
    to_the_bit = None
    if problem.op == "int8_linear" and not problem.heavy:
        sums = (given.a.double()[sampled] @ given.b.double().t()).float()
        to_the_bit = finished(sums, given.s[sampled], given.t, given.bias, beside, given.activation, dtype)

    def wrong(name: str, found: Tensor) -> str:
        if name == FLOAT:  # of other weights; it is nobody's reference
            return ""
        if to_the_bit is not None and not torch.equal(found[sampled], to_the_bit):
            return f"{int((found[sampled] != to_the_bit).sum())} numbers are not those of exact sums"
        return too_far(found[sampled], wanted, lost(scheme.mode, problem.K))

    return wrong


def exact(y: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """act(y + bias) + residual in float64."""
    y = y + bias.double()
    return y if residual is None else F.gelu(y) + residual.double()
