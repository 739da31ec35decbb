"""Linear layers on codes of 8 bits: `torch.ops.qcompiler.triton_int8_linear` and `triton_fp8_linear`.

    y[m, n] = act((sum_k a[m, k] b[n, k]) s_m t_n + bias_n) + residual[m, n]

Without scales of rows there is no s_m: where all rows have one scale, it is a factor of t. Both operands lie
contiguous along k. All is in float32 from the sums on, factor by factor as written, and is cast once. The
order of sums is stated for each op.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops.alignment import MULTIPLE, even, lies_askew
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.schedule import named, scheduled
from qcompiler.backends.triton.tuning.problem import Problem, going_on
from qcompiler.errors import InputError
from qcompiler.ir.products import DEEPEST, summed

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}
"""By name; the GELU is the one with erf."""
LIGHT = ("none", "relu")  # of these, those that need no registers of their own
ACCUMULATIONS = ("fast", "promote128")
PROBLEMS = {
    "int8_matmul": ("int8_linear", "int8"),
    "fp8_matmul": ("fp8_linear", "e4m3"),
    "fp8_block_matmul": ("fp8_block_linear", "e4m3"),
}
"""By kernel: what a product is called where it is measured, and its codes."""
CHUNK = 128  # of k, whose sum is added in float32 by "promote128"

Compiled = tuple[Mapping[str, Any], Mapping[str, int]]
"""Constants and options of a kernel."""


@torch.library.custom_op("qcompiler::triton_int8_linear", mutates_args=(), device_types="cpu")
def int8_linear(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """int8 [M, K] and [N, K], scales float32 [M], or None, and [N]  -->  [M, N] of a dtype.

    Sums of products are exact integers, rounded to float32 once. K is a multiple of 16, at most 133,144, or
    132,104 if codes of a may be -128, as those of `triton_quantize_by_scale` may.
    """
    checked(a, b, a_scale, b_scale, bias, residual, activation, torch.int8)
    return finished(summed(a, b.t()).float(), a_scale, b_scale, bias, residual, activation, dtype)


@int8_linear.register_fake
def _(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


@int8_linear.register_kernel("cuda")
def int8_on_cuda(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    from qcompiler.backends.triton.kernels.int8_matmul import int8_matmul

    checked(a, b, a_scale, b_scale, bias, residual, activation, torch.int8)
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
    launched(int8_matmul, "", a, a_scale, b, b_scale, bias, residual, activation, out)
    return out


@torch.library.custom_op("qcompiler::triton_fp8_linear", mutates_args=(), device_types="cpu")
def fp8_linear(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    accumulation: str,
    dtype: torch.dtype,
) -> Tensor:
    """e4m3 [M, K] and [N, K], scales float32 [M], or None, and [N]  -->  [M, N] of a dtype.

    K is a multiple of 16.

    accumulation: "fast", one sum over k, which tensor cores hold in fewer bits than float32; "promote128",
    ((p_0 + p_1) + p_2) + ... in float32, each p of 128 k. Here both are sums of float32. On a GPU k may be in
    parts, each summed so, which are added in order in float32: as many as its configuration says.
    """
    checked(a, b, a_scale, b_scale, bias, residual, activation, torch.float8_e4m3fn)
    known(accumulation, ACCUMULATIONS, "accumulation")
    left, right = a.float(), b.float()
    if accumulation == "fast":
        total = left @ right.t()
    else:
        total = left.new_zeros((len(a), len(b)))
        for p, q in zip(torch.split(left, CHUNK, 1), torch.split(right, CHUNK, 1), strict=True):
            total += p @ q.t()
    return finished(total, a_scale, b_scale, bias, residual, activation, dtype)


@fp8_linear.register_fake
def _(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    accumulation: str,
    dtype: torch.dtype,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


@fp8_linear.register_kernel("cuda")
def fp8_on_cuda(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    accumulation: str,
    dtype: torch.dtype,
) -> Tensor:
    from qcompiler.backends.triton.kernels.fp8_matmul import fp8_matmul

    checked(a, b, a_scale, b_scale, bias, residual, activation, torch.float8_e4m3fn)
    known(accumulation, ACCUMULATIONS, "accumulation")
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
    launched(fp8_matmul, accumulation, a, a_scale, b, b_scale, bias, residual, activation, out)
    return out


def launched(
    kernel: Any,
    mode: str,
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out: Tensor,
    *,
    scale: Tensor | None = None,
    amax: Tensor | None = None,
) -> None:
    """Fill out by a kernel, compiled as the device's configuration says; a residual may be out itself.

    Codes were checked, and out lies evenly. scale, amax: see `launch_product`, and `going_on` for what runs.
    """
    from qcompiler.backends.triton.kernels.launching import launch_product

    op, format = PROBLEMS[kernel.__name__]
    problem = Problem(
        op=op, scheme=f"{format} {mode}".strip(), M=len(a), N=len(b), K=a.shape[1], out=named(out.dtype),
        heavy=is_heavy(activation, residual),
    )  # fmt: skip
    problem = going_on(problem, codes=scale is not None, maxima=amax is not None)
    default = chosen(kernel.__name__, capability(a.device), mode=mode, heavy=problem.heavy)
    configuration = scheduled(problem, a.device, default)
    with torch.cuda.device(a.device):
        launch_product(
            kernel, a, b, out, even(a_scale), even(b_scale), even(bias), even(residual), activation,
            configuration.constants, configuration.options, scale=even(scale), amax=amax,
            total=adding(configuration, a.device),
        )  # fmt: skip


def adding(configuration: Configuration, device: torch.device) -> Compiled | None:
    """Constants and options of what adds a product's parts, where a configuration makes any."""
    if "SPLIT" not in configuration.constants:
        return None
    row = chosen("product_total", capability(device), heavy=configuration.heavy)
    return row.constants, row.options


def kernel_for(a: Tensor, accumulation: str) -> tuple[Any, str]:
    """The kernel for codes of either kind, and its mode; accumulation: of FP8."""
    from qcompiler.backends.triton.kernels.fp8_matmul import fp8_matmul
    from qcompiler.backends.triton.kernels.int8_matmul import int8_matmul

    known(accumulation, ACCUMULATIONS, "accumulation")
    return (int8_matmul, "") if a.dtype == torch.int8 else (fp8_matmul, accumulation)


def kind_of(a: Tensor) -> torch.dtype:
    """The type that codes have, or should have where they are not int8."""
    return torch.int8 if a.dtype == torch.int8 else torch.float8_e4m3fn


def finished(
    sums: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """What happens to sums float32 [M, N] on their way out."""
    y = (sums if a_scale is None else sums * a_scale[:, None]) * b_scale
    return ended(y, bias, residual, activation, dtype)


def ended(
    y: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, dtype: torch.dtype
) -> Tensor:
    """The same of sums float32 [M, N] that are scaled."""
    y = y if bias is None else y + bias.float()
    y = ACTIVATIONS[activation](y)
    y = y if residual is None else y + residual.float()
    return y.to(dtype)


def is_heavy(activation: str, residual: object) -> bool:
    """Whether an epilogue holds more than scales and a bias."""
    return activation not in LIGHT or residual is not None


def known(name: str, names: Collection[str], what: str) -> None:
    if name not in names:
        raise InputError(f'{what} "{name}"', fix=f"use one of {', '.join(names)}")


def checked(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    kind: torch.dtype,
) -> None:
    """InputError where operands do not fit one another or lie otherwise than kernels read them."""
    known(activation, ACTIVATIONS, "activation")
    check_codes(a, b, kind)
    shape = len(a), len(b)
    given = (("scales", a_scale, shape[:1]), ("scales", b_scale, shape[1:]), ("bias", bias, shape[1:]),
             ("residual", residual, shape))  # fmt: skip
    for what, x, wanted in given:
        check_beside(what, x, wanted, a.device, (torch.float32,) if what == "scales" else ())


def check_codes(a: Tensor, b: Tensor, kind: torch.dtype) -> None:
    """InputError for codes of another type, shape or place than [M, K] and [N, K] that kernels read."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not a.dtype == b.dtype == kind:
        raise InputError(
            f"a product of {a.dtype} {[*a.shape]} and {b.dtype} {[*b.shape]}",
            why=f"{kind} [M, K] and [N, K] are wanted",
        )
    K = a.shape[1]
    if K == 0 or K % MULTIPLE or (kind == torch.int8 and K > DEEPEST):
        raise InputError(
            f"a product of {kind} over {K}",
            why=f"{MULTIPLE} are taken at a time, and int32 holds the sum of {DEEPEST} products of codes",
            fix="pad rows of codes with zeros, or add products over parts",
        )
    if any(lies_askew(x) for x in (a, b)):
        raise InputError(
            f"codes with strides {a.stride()} and {b.stride()}",
            why=f"rows must be contiguous and begin at multiples of {MULTIPLE} bytes",
            fix="store the weight as [N, K], and make codes contiguous",
        )


def check_beside(
    what: str, x: Tensor | None, shape: tuple[int, ...], device: torch.device, types: Sequence[torch.dtype]
) -> None:
    """InputError for what lies beside an operand in another shape, place or type than kernels read.

    types: those that will do, or none where any does.
    """
    if x is None:
        return
    is_elsewhere = tuple(x.shape) != shape or x.stride(-1) != 1 or x.device != device
    if is_elsewhere or (types and x.dtype not in types):
        names = " or ".join(str(one).removeprefix("torch.") for one in types)
        raise InputError(
            f"{what} {x.dtype} {[*x.shape]} on {x.device}",
            why=f"{[*shape]} on {device} is wanted, contiguous{f'; {what} in {names}' if names else ''}",
        )
