"""The contenders of a product of codes: our kernels, a vendor's, and the float product.

Numbers are random, activations with an outlier in a thousand: zeros would draw less power than real ones, and
run faster.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.ops.linear import finished
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.signatures import kernel_named
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.families import FLOAT, WIDTHS, mode_of
from qcompiler.backends.triton.tuning.problem import Problem

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOOR = 1.5  # times the error of rounding the exact result to its type
FAST = 1e-2  # of the result, where tensor cores keep fewer bits of sums than float32
SAMPLED = 256  # rows that are compared


def activations(M: int, K: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal numbers, one in a thousand of them 20 times as large."""
    x = torch.randn(M, K, device=device)
    return torch.where(torch.rand(M, K, device=device) < 1e-3, 20 * x, x).to(dtype)


def weights(N: int, K: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (torch.randn(N, K, device=device) / math.sqrt(K)).to(dtype)


def contenders(
    problem: Problem, configurations: Mapping[str, Configuration], peers: Sequence[str], device: torch.device
) -> Contenders:
    """Of an int8 or FP8 product on codes that are there already."""
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
    out = torch.empty(M, N, dtype=dtype, device=device)

    def ours(configuration: Configuration) -> Callable[[int], Tensor]:
        from qcompiler.backends.triton.kernels.launching import launch_product

        kernel = kernel_named(configuration.kernel)

        def call(copy: int) -> Tensor:
            launch_product(
                kernel, a, codes[copy], out, s, t, bias, residual, activation, configuration.constants,
                configuration.options,
            )  # fmt: skip
            return out

        return call

    def float_product(copy: int) -> Tensor:
        y = F.linear(x, floats[copy % len(floats)], bias.to(dtype))
        return y if residual is None else F.gelu(y) + residual

    def int_mm(copy: int) -> Tensor:
        return finished(torch._int_mm(a, codes[copy].t()), s, t, bias, residual, activation, dtype)

    def scaled_mm(copy: int) -> Tensor:
        y = torch._scaled_mm(
            a, codes[copy].t(), scale_a=s[:, None], scale_b=t[None, :], bias=bias.to(dtype), out_dtype=dtype,
            use_fast_accum=mode_of(problem) == "fast",
        )  # fmt: skip
        return y if residual is None else F.gelu(y) + residual

    vendor = {FLOAT: float_product, "int_mm": int_mm, "scaled_mm": scaled_mm}
    rows = torch.randperm(M, device=device)[:SAMPLED]
    sums = a[rows].double() @ b.double().t()
    beside = residual if residual is None else residual[rows]
    wanted = exact(sums, s[rows], t, bias, beside)
    to_the_bit = finished(sums.float(), s[rows], t, bias, beside, activation, dtype)

    def wrong(name: str, found: Tensor) -> str:
        if name == FLOAT:  # of other weights; it is nobody's reference
            return ""
        if format == "int8" and not problem.heavy and not torch.equal(found[rows], to_the_bit):
            return f"{int((found[rows] != to_the_bit).sum())} numbers are not those of exact sums"
        return too_far(found[rows], wanted, FAST if mode_of(problem) == "fast" else 0.0)

    ours_by_name = {name: ours(configuration) for name, configuration in configurations.items()}
    return Contenders(
        calls={**ours_by_name, **{name: vendor[name] for name in peers}}, copies=copies, wrong=wrong
    )


def exact(sums: Tensor, s: Tensor, t: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """act(sums s t + bias) + residual in float64."""
    y = sums * s.double()[:, None] * t.double() + bias.double()
    return y if residual is None else F.gelu(y) + residual.double()


def too_far(found: Tensor, wanted: Tensor, allowed: float) -> str:
    """Why a result is wrong: its error is beyond what rounding it to its type makes, and what is allowed."""
    scale = wanted.norm()
    error = float((found.double() - wanted).norm() / scale)
    floor = float((wanted.to(found.dtype).double() - wanted).norm() / scale)
    limit = max(FLOOR * floor, allowed)
    return "" if error <= limit else f"its error is {error:.2e}, and {limit:.2e} is allowed"
