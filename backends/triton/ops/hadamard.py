"""Rows turned by the block Hadamard transform and quantized, `torch.ops.qcompiler.triton_hadamard_quantize`.

    y = x BlockDiag(H, ..., H)        H as in `numerics.hadamard`: symmetric, orthogonal, H H = I
    q, s     as in `quantize_rows`, of y in float32

An outlier is spread over its block, and products stay: (X H)(W H)^T = X W^T.
"""

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.ops import quantize
from qcompiler.backends.triton.ops.alignment import even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.held import check_length, configuration
from qcompiler.backends.triton.ops.quantize import codes_of, padded, scale_of
from qcompiler.backends.triton.ops.schedule import of_rows, scheduled
from qcompiler.errors import InputError

BLOCKS = tuple(2**k for k in range(1, 13))


@torch.library.custom_op("qcompiler::triton_hadamard_quantize", mutates_args=(), device_types="cpu")
def hadamard_quantize(x: Tensor, block: int, format: str) -> tuple[Tensor, Tensor]:
    """[M, K] in blocks of 2 .. 4096 that divide K  -->  codes [M, K rounded up to 16], scales [M].

    Sums and differences in the order of `turned`: each is rounded by itself, so that all is exact.
    """
    checked(x, block, format)
    wide = turned(x.float(), block)
    scale = scale_of(wide, format)
    return codes_of(wide, scale, format), scale


@hadamard_quantize.register_fake
def _(x: Tensor, block: int, format: str) -> tuple[Tensor, Tensor]:
    return quantize.empty(x, format)


@hadamard_quantize.register_kernel("cuda")
def on_cuda(x: Tensor, block: int, format: str) -> tuple[Tensor, Tensor]:
    checked(x, block, format)
    row = configuration("hadamard_quantize", padded(x.shape[1]), capability(x.device))
    problem = of_rows("hadamard_quantize", f"{format} {block}", x)
    return launched(x, block, format, scheduled(problem, x.device, row))


def launched(x: Tensor, block: int, format: str, row: Configuration) -> tuple[Tensor, Tensor]:
    """The same by a kernel, compiled as a row says."""
    from qcompiler.backends.triton.kernels.hadamard import launch

    codes, scales = quantize.empty(x, format)
    with torch.cuda.device(x.device):
        launch(even(x), codes, scales, levels_of(block), format, row.constants, row.options)
    return codes, scales


def turned(x: Tensor, block: int) -> Tensor:
    """x BlockDiag(H, ..., H), [M, K] in float32: log2 block steps, and a product by 1 / sqrt(block).

    At each step numbers whose places differ in one bit, the lowest first, become a + b and a - b.
    """
    y = x
    for level in range(levels_of(block)):
        first, second = y.reshape(-1, 2, 2**level).unbind(1)
        y = torch.stack((first + second, first - second), 1)
    return y.reshape(x.shape) * 2 ** (-levels_of(block) / 2)


def levels_of(block: int) -> int:
    return block.bit_length() - 1


def checked(x: Tensor, block: int, format: str) -> None:
    quantize.checked(x, format)
    check_length(x.shape[1])
    if block not in BLOCKS or x.shape[1] % block:
        raise InputError(
            f"Hadamard blocks of {block} in rows of {x.shape[1]}",
            fix=f"use a power of two from {BLOCKS[0]} to {BLOCKS[-1]} that divides them",
        )
