"""Linear layers of floats with weights of few bits, `torch.ops.qcompiler.triton_weight_only_linear`.

    p[m, n, g] = sum of (u[n, k] - z[n, g]) x[m, k] over the k of group g
    y[m, n] = act(sum over g of s[n, g] p[m, n, g] + bias_n) + residual[m, n]

and with a gate, a weight of 2 N rows, of which the first N are activated and multiply the others:

    y[m, n] = act(sum of row n + bias_n) (sum of row N + n + bias_(N + n)) + residual[m, n]

u - z is an exact integer of at most 9 bits. All is in float32, where p is rounded once for each group before
its scale, and is cast once. In which order groups are added depends on shapes alone: see `totals`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.layouts import SCALES, Layout, check_shape, differences, layout_named
from qcompiler.backends.triton.ops.alignment import begins_evenly, even, lies_askew
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.linear import ACTIVATIONS, check_beside, is_heavy, known
from qcompiler.backends.triton.ops.schedule import named, scheduled
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.errors import InputError

RUN = 1024  # k that are summed side by side where M = 1, and the least that is worth a part of its own
LONG = 64  # bytes of a group from which on one is enough at a time

PROGRAMS: Mapping[str, tuple[int, int, int]] = {
    "gemv": (1, 4, 512),
    "few": (16, 64, 256),
    "some": (64, 64, 256),
    "many": (128, 128, 128),
}
"""By mode: rows and outputs of a program, and how many programs there should be where K can be split."""


@torch.library.custom_op("qcompiler::triton_weight_only_linear", mutates_args=(), device_types="cpu")
def weight_only_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    layout: str,
    gated: bool,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """x bfloat16 or float16 [M, K], a weight in a layout [N, K] or with a gate [2 N, K]  -->  [M, N].

    codes uint8 [rows, K b / 8], scales bfloat16 or float16 [rows, K / G], zeros uint8 [rows, K / G] or None
    for a symmetric weight, bias [rows], residual [M, N]: see `layouts`.
    """
    kind = checked(x, codes, scales, zeros, bias, residual, layout, gated, activation)
    y = totals(x.float(), differences(codes, zeros, kind), scales.float(), kind, gated)
    y = activated(y if bias is None else y + bias.float(), activation, gated)
    y = y if residual is None else y + residual.float()
    return y.to(dtype)


@weight_only_linear.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    layout: str,
    gated: bool,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    return empty(x, codes, gated, dtype)


@weight_only_linear.register_kernel("cuda")
def on_cuda(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    layout: str,
    gated: bool,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    kind = checked(x, codes, scales, zeros, bias, residual, layout, gated, activation)
    heavy = is_heavy(activation, residual)
    words = (layout, "zeros" * (zeros is not None), "gated" * gated)
    problem = Problem(
        op="weight_only_linear", scheme=" ".join(filter(None, words)), M=len(x),
        N=len(codes) // (1 + gated), K=x.shape[1], out=named(dtype), heavy=heavy,
    )  # fmt: skip
    default = product_for(len(x), kind, capability(x.device), gated or heavy)
    product = scheduled(problem, x.device, default)
    return launched(x, codes, scales, zeros, bias, residual, layout, gated, activation, dtype, product)


def launched(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    layout: str,
    gated: bool,
    activation: str,
    dtype: torch.dtype,
    product: Configuration,
) -> Tensor:
    """The same by kernels, of which that of the products is compiled as a row says."""
    from qcompiler.backends.triton.kernels.weight_only import launch

    kind, out = layout_named(layout), empty(x, codes, gated, dtype)
    M, N = out.shape
    total = chosen("weight_only_total", capability(x.device))
    with torch.cuda.device(x.device):
        launch(
            x, codes, scales, zeros, even(bias), even(residual), out, bits=kind.bits, group=kind.group,
            gated=gated, activation=activation, run=RUN, parts=parts_of(M, N, x.shape[1], kind),
            product=(product.constants, product.options), total=(total.constants, total.options),
        )  # fmt: skip
    return out


def product_for(M: int, layout: Layout, capability: int, is_heavy: bool) -> Configuration:
    """Few rows have rows of their own for groups of few bytes, of which more must be on their way at once.

    A gate is heavy, since it takes two sums.
    """
    mode = mode_of(M)
    if mode == "gemv":
        return chosen("weight_only_gemv", capability)
    if mode == "few" and not is_heavy and layout.bytes < LONG:
        mode = "few, short groups"
    return chosen("weight_only_gemm", capability, mode=mode, heavy=is_heavy)


def activated(y: Tensor, activation: str, gated: bool) -> Tensor:
    """act(y), or with a gate act(first half) (second half); every step in the type of y [..., rows]."""
    if not gated:
        return ACTIVATIONS[activation](y)
    gate, beside = y.chunk(2, -1)
    return ACTIVATIONS[activation](gate) * beside


def empty(x: Tensor, codes: Tensor, gated: bool, dtype: torch.dtype) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0] // 2 if gated else codes.shape[0]), dtype=dtype)


# ---------------------------------------------------------------- the order of sums


def mode_of(M: int) -> str:
    """The first mode whose programs hold M rows, or the last."""
    return next((mode for mode, (rows, _, _) in PROGRAMS.items() if rows >= M), "many")


def parts_of(M: int, N: int, K: int, layout: Layout) -> int:
    """Into how many parts a sum over K is split: as many as keep a device busy, none empty or short."""
    rows, outputs, wanted = PROGRAMS[mode_of(M)]
    programs = -(-M // rows) * -(-N // outputs)
    parts = max(min(wanted // programs, K // RUN), 1)
    steps = -(-K // (RUN if M == 1 else layout.group))
    return -(-steps // -(-steps // parts))


def totals(x: Tensor, steps: Tensor, scales: Tensor, layout: Layout, gated: bool) -> Tensor:
    """x [M, K], steps [rows, groups, G], scales [rows, groups], all float32  -->  [M, rows].

    Groups are taken L at a time, L = 1024 / G where M = 1 and else 1. Lane i adds the i-th of each L in
    order; then neighbouring lanes are added until one is left. Parts of consecutive groups come in order.
    """
    M, groups = len(x), steps.shape[1]
    rows = len(steps)
    parts = parts_of(M, rows // 2 if gated else rows, x.shape[1], layout)
    lanes = RUN // layout.group if M == 1 else 1
    runs = -(-groups // lanes)
    length = -(-runs // parts)
    total = x.new_zeros((M, rows))
    for part in range(parts):
        sums = [x.new_zeros((M, rows)) for _ in range(lanes)]
        for g in range(part * length * lanes, min((part + 1) * length * lanes, groups)):
            p = x[:, g * layout.group : (g + 1) * layout.group] @ steps[:, g].t()
            sums[g % lanes] += p * scales[:, g]
        while len(sums) > 1:
            sums = [left + right for left, right in zip(sums[::2], sums[1::2], strict=True)]
        total += sums[0]
    return total


# ---------------------------------------------------------------- refusals


def checked(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    layout: str,
    gated: bool,
    activation: str,
) -> Layout:
    """The layout; InputError where operands do not fit one another, or lie otherwise than they are read."""
    known(activation, ACTIVATIONS, "activation")
    kind = layout_named(layout)
    if codes.dim() != 2 or codes.dtype != torch.uint8:
        raise InputError(f"codes {codes.dtype} {[*codes.shape]}", why="bytes [N, K b / 8] are wanted")
    rows, K = codes.shape[0], codes.shape[1] * kind.per_byte
    check_shape((rows // 2 if gated else rows, K), kind)
    if x.dim() != 2 or len(x) == 0 or x.shape[1] != K or x.dtype not in SCALES:
        raise InputError(
            f"a product of {x.dtype} {[*x.shape]} and a weight {[rows, K]} in {layout}",
            why=f"bfloat16 or float16 [M, {K}] is wanted",
        )
    if lies_askew(x) or lies_askew(codes) or not codes.is_contiguous():
        raise InputError(
            f"rows with strides {x.stride()}, and codes with {codes.stride()}",
            why="16 bytes are read at a time, and a weight lies in one piece",
            fix="make both contiguous",
        )
    groups = (rows, K // kind.group)
    check_beside("scales", scales, groups, x.device, SCALES)
    check_beside("zero points", zeros, groups, x.device, (torch.uint8,))
    beside = [x for x in (scales, zeros) if x is not None]
    if not all(x.is_contiguous() and begins_evenly(x) for x in beside):
        raise InputError(
            "scales or zero points with gaps, or that begin within a load",
            why="16 bytes are read at a time", fix="store a copy of them",
        )  # fmt: skip
    check_beside("codes", codes, tuple(codes.shape), x.device, ())
    check_beside("bias", bias, (rows,), x.device, ())
    check_beside("residual", residual, (len(x), rows // 2 if gated else rows), x.device, ())
    return kind
