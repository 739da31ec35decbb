"""Launching products, with memory for what a kernel keeps beside its arguments.

That is descriptors, what the copy engine knows of a matrix, and sums of parts where K is split.
"""

from collections.abc import Mapping
from contextvars import copy_context
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from qcompiler.backends.triton.kernels.parts import product_total


def launch_product(
    kernel: Any,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    constants: Mapping[str, Any],
    options: Mapping[str, int],
    *,
    scale: Tensor | None = None,
    amax: Tensor | None = None,
    total: tuple[Mapping[str, Any], Mapping[str, int]] | None = None,
) -> None:
    """Fill out [M, N] from a [M, K] and b [N, K]; bias and residual may be None.

    A program for each tile, or as the constants say for each of its parts, or some for each processor: see
    `kernels.product`. total: constants and options of what adds parts, where there are any.

    scale: float32 [1], of codes that out gets, [M, N rounded up to 16]. amax: int32 [M], zeros, which become
    the bits of the largest of each row.

    The scratch memory is torch's; whoever set an allocator for Triton still has it afterwards.
    """
    (M, K), N = a.shape, b.shape[0]
    parts, of_processor = constants.get("SPLIT", 1), constants.get("PERSISTENT", 0)
    tiles = triton.cdiv(M, constants["BM"]) * triton.cdiv(N, constants["BN"])
    programs = min(tiles, of_processor * processors(a.device)) if of_processor else tiles
    beside = 0 if residual is None else pitch(residual)
    common = {"ACTIVATION": activation, "enable_fp_fusion": False}
    partial: dict[str, Tensor] = {}
    if parts > 1:
        kind = torch.int32 if a.dtype == torch.int8 else torch.float32
        partial["partial"] = torch.empty((parts, M, N), dtype=kind, device=a.device)

    def run() -> None:
        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=a.device)
        )
        kernel[(programs, parts)](
            a, b, out, a_scale, b_scale, bias, residual, scale, amax, M, N, K,
            pitch(a), pitch(b), pitch(out), beside, **partial, **common, **constants, **options,
        )  # fmt: skip

    copy_context().run(run)
    if parts > 1:
        assert total is not None
        constants, options = total
        product_total[(triton.cdiv(M, constants["BM"]), triton.cdiv(N, constants["BN"]))](
            *partial.values(), out, a_scale, b_scale, bias, residual, scale, amax, parts, M, N, pitch(out),
            beside, **common, **constants, **options,
        )  # fmt: skip


@cache
def processors(device: torch.device) -> int:
    """Of a GPU; a CPU, on which kernels are interpreted, is one."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def pitch(x: Tensor) -> int:
    """Elements from one row to the next; where there is but one it may say anything, which TMA refuses."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]
