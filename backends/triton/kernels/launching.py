"""Launching products, with memory for what a kernel keeps beside its arguments.

That is descriptors: what the copy engine knows of a matrix.
"""

from collections.abc import Mapping
from contextvars import copy_context
from typing import Any

import torch
import triton
from torch import Tensor


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
) -> None:
    """Fill out [M, N] from a [M, K] and b [N, K], a program for each tile; bias and residual may be None.

    scale: float32 [1], of codes that out gets, [M, N rounded up to 16]. amax: int32 [M], zeros, which become
    the bits of the largest of each row.

    The scratch memory is torch's; whoever set an allocator for Triton still has it afterwards.
    """
    (M, K), N = a.shape, b.shape[0]
    grid = (triton.cdiv(M, constants["BM"]) * triton.cdiv(N, constants["BN"]),)

    def run() -> None:
        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=a.device)
        )
        kernel[grid](
            a, b, out, a_scale, b_scale, bias, residual, scale, amax, M, N, K,
            pitch(a), pitch(b), pitch(out), 0 if residual is None else pitch(residual),
            ACTIVATION=activation, **constants, enable_fp_fusion=False, **options,
        )  # fmt: skip

    copy_context().run(run)


def pitch(x: Tensor) -> int:
    """Elements from one row to the next; where there is but one it may say anything, which TMA refuses."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]
