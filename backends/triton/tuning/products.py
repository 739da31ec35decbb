"""The contenders of a product of codes: our kernels, a vendor's, and the float product.

Numbers are random, activations with an outlier in a thousand: zeros would draw less power than real ones, and
run faster. A vendor's products and the float one are the functions that models run (`engine.candidates`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.engine.candidates import float_linear, int_mm, scaled_mm
from qcompiler.backends.triton.ops.linear import finished, fp8_linear, int8_linear
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.signatures import kernel_named
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.families import FLOAT, WIDTHS, mode_of
from qcompiler.backends.triton.tuning.gate import lost, too_far
from qcompiler.backends.triton.tuning.problem import Problem

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
    format = problem.scheme.partition(" ")[0]
    copies = copies_of(N * K, device)
    x, bias = activations(M, K, dtype, device), torch.randn(N, device=device)
    residual = torch.randn(M, N, device=device).to(dtype) if problem.heavy else None
    activation = "gelu" if problem.heavy else "none"
    a, s = quantize_rows(x, format)
    b, t = quantize_rows(weights(N, K, dtype, device), format)
    codes = [b.clone() for _ in range(copies)]
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
                configuration.options,
            )  # fmt: skip
            return out

        return call

    def reference(configuration: Configuration, rows: Codes) -> Callable[[int], Tensor]:
        op = {"int8_linear": int8_linear, "fp8_linear": fp8_linear}[problem.op]
        mode = (mode_of(problem),) if problem.op == "fp8_linear" else ()

        def call(copy: int) -> Tensor:
            a, s = rows()
            y: Tensor = op(a, s, codes[copy], t, bias, residual, activation, *mode, dtype)
            return y

        return call

    def float_product(copy: int) -> Tensor:
        return float_linear(x, None, floats[copy % len(floats)], None, cast, *behind)

    def vendor(compute: Callable[..., Tensor], rows: Codes, copy: int) -> Tensor:
        a, s = rows()
        return compute(a, s, codes[copy], t, bias, *behind)

    vendors: Mapping[str, Callable[..., Tensor]] = {
        "int_mm": int_mm, "scaled_mm": partial(scaled_mm, accumulation=mode_of(problem))
    }  # fmt: skip
    sampled = torch.randperm(M, device=device)[:SAMPLED]
    sums = a.float()[sampled].double() @ b.double().t()
    beside = residual if residual is None else residual[sampled]
    wanted = exact(sums, s[sampled], t, bias, beside)
    to_the_bit = finished(sums.float(), s[sampled], t, bias, beside, activation, dtype)

    def wrong(name: str, found: Tensor) -> str:
        if name == FLOAT:  # of other weights; it is nobody's reference
            return ""
        if format == "int8" and not problem.heavy and not torch.equal(found[sampled], to_the_bit):
            return f"{int((found[sampled] != to_the_bit).sum())} numbers are not those of exact sums"
        return too_far(found[sampled], wanted, lost(mode_of(problem), K))

    make = reference if device.type == "cpu" else ours
    calls: dict[str, Callable[[int], Tensor]] = {}
    inputs: list[tuple[str, Codes]] = [("", lambda: (a, s))]
    if quantized:
        inputs.append((QUANTIZED, lambda: quantize_rows(x, format)))
    for suffix, rows in inputs:
        calls |= {f"{name}{suffix}": make(one, rows) for name, one in configurations.items()}
        calls |= {f"{name}{suffix}": partial(vendor, vendors[name], rows) for name in peers if name != FLOAT}
    if FLOAT in peers:
        calls[FLOAT] = float_product
    return Contenders(calls=calls, copies=copies, wrong=wrong)


def exact(sums: Tensor, s: Tensor, t: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """act(sums s t + bias) + residual in float64."""
    y = sums * s.double()[:, None] * t.double() + bias.double()
    return y if residual is None else F.gelu(y) + residual.double()
