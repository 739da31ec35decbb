"""Rows of floats to codes of 8 bits, `torch.ops.qcompiler.triton_quantize_rows`.

s = max |x| / L        q = clamp(rne(x / s), -L, L)        x ~ q s        L = 127, 448 or 57344
"""

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops.alignment import MULTIPLE, even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.schedule import of_rows, scheduled
from qcompiler.errors import InputError
from qcompiler.numerics import row_codes
from qcompiler.numerics.row_codes import CODES, scale_of

__all__ = ["CODES", "MULTIPLE", "codes_of", "quantize_rows", "scale_of"]


@torch.library.custom_op("qcompiler::triton_quantize_rows", mutates_args=(), device_types="cpu")
def quantize_rows(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """[M, K]  -->  codes [M, K rounded up to 16], zeros behind the K-th, and scales float32 [M].

    Divisions are those of float32. A row of zeros has scale 1; one with NaN or an infinity has scale NaN and
    codes 0, so that what it is multiplied into is NaN and no other row is. No scale is below 2^-126.
    """
    checked(x, format)
    wide = x.float()
    scale = scale_of(wide, format)
    return codes_of(wide, scale, format), scale


@quantize_rows.register_fake
def _(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    return empty(x, format)


@quantize_rows.register_kernel("cuda")
def on_cuda(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    checked(x, format)
    row = configuration(padded(x.shape[1]), capability(x.device))
    return launched(x, format, scheduled(of_rows("quantize_rows", format, x), x.device, row))


def launched(x: Tensor, format: str, row: Configuration) -> tuple[Tensor, Tensor]:
    """The same by a kernel, compiled as a row says."""
    from qcompiler.backends.triton.kernels.quantize import launch

    codes, scale = empty(x, format)
    with torch.cuda.device(x.device):
        launch(even(x), codes, scale, format, row.constants["BLOCK"], row.options)
    return codes, scale


def configuration(width: int, capability: int) -> Configuration:
    """The one that holds a row of codes, or else the one that reads it twice."""
    return chosen("quantize_long_rows" if is_read_twice(width, capability) else "quantize_rows", capability)


def is_read_twice(width: int, capability: int) -> bool:
    """Whether no program holds a row of so many codes."""
    held: int = chosen("quantize_rows", capability).constants["BLOCK"]
    return width > held


def codes_of(x: Tensor, scale: Tensor, format: str, noise: Tensor | None = None) -> Tensor:
    """The codes of rows, and zeros behind them: x [M, K]  -->  [M, K rounded up to 16]."""
    return packed(row_codes.codes_of(x, scale, format, noise))


def packed(codes: Tensor) -> Tensor:
    """[M, K]  -->  [M, K rounded up to 16], zeros behind the K-th, in memory of its own, which is aligned."""
    wide = codes.new_zeros((codes.shape[0], padded(codes.shape[1])))
    wide[:, : codes.shape[1]] = codes
    return wide


def empty(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    codes = x.new_empty((x.shape[0], padded(x.shape[1])), dtype=CODES[format][0])
    return codes, x.new_empty((x.shape[0],), dtype=torch.float32)


def padded(columns: int) -> int:
    return (columns + MULTIPLE - 1) // MULTIPLE * MULTIPLE


def checked(x: Tensor, format: str) -> None:
    if format not in CODES:
        raise InputError(f'rows in "{format}"', fix=f"use one of {', '.join(CODES)}")
    if x.dim() != 2 or not x.is_floating_point() or x.shape[1] == 0 or x.stride(1) != 1:
        raise InputError(
            f"rows of {x.dtype} {[*x.shape]} with strides {x.stride()}",
            why="floats [rows, columns] are wanted, the columns of a row side by side",
            fix="flatten what comes before the last axis, and make it contiguous",
        )
