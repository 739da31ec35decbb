"""Floats to codes of 8 bits by scales that are known before, in one pass over rows of any length.

`torch.ops.qcompiler.triton_quantize_by_amax`     s = a_m / L, a_m = max |x| of each row
`torch.ops.qcompiler.triton_quantize_by_scale`    q = sat(rne(x / s)), one s of all rows
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops import quantize
from qcompiler.backends.triton.ops.alignment import even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.linear import check_beside
from qcompiler.backends.triton.ops.quantize import CODES, codes_of, packed, scale_of
from qcompiler.backends.triton.ops.schedule import of_rows, scheduled

FORMAT: Mapping[torch.dtype, str] = {kind: format for format, (kind, _) in CODES.items()}
"""What codes of a type are called."""


@torch.library.custom_op("qcompiler::triton_quantize_by_amax", mutates_args=(), device_types="cpu")
def quantize_by_amax(x: Tensor, amax: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """x [M, K] and max |x| of each row, float32 [M]  -->  what `quantize_rows` of x returns.

    amax is infinite where a row is not finite, as `linear_amax` returns it. Below the true maximum of a row
    its codes saturate.
    """
    checked(x, format, amax=amax)
    scale = scale_of(amax[:, None], format)
    return codes_of(x.float(), scale, format), scale


@quantize_by_amax.register_fake
def _(x: Tensor, amax: Tensor, format: str) -> tuple[Tensor, Tensor]:
    return quantize.empty(x, format)


@quantize_by_amax.register_kernel("cuda")
def by_amax_on_cuda(x: Tensor, amax: Tensor, format: str) -> tuple[Tensor, Tensor]:
    checked(x, format, amax=amax)
    return launched(x, amax, None, format, configuration("quantize_by_amax", x, format))


@torch.library.custom_op("qcompiler::triton_quantize_by_scale", mutates_args=(), device_types="cpu")
def quantize_by_scale(x: Tensor, scale: Tensor, format: str) -> Tensor:
    """x [M, K] and a scale, float32 [1]  -->  codes [M, K rounded up to 16], zeros behind the K-th.

    They are those of `qcompiler::quantize` with a zero point of 0: int8 has -128, too, and NaN is that code;
    in the formats of floats it is NaN.
    """
    checked(x, format, scale=scale)
    return saturated(x.float(), scale, format)


@quantize_by_scale.register_fake
def _(x: Tensor, scale: Tensor, format: str) -> Tensor:
    return quantize.empty(x, format)[0]


@quantize_by_scale.register_kernel("cuda")
def by_scale_on_cuda(x: Tensor, scale: Tensor, format: str) -> Tensor:
    checked(x, format, scale=scale)
    codes, _ = launched(x, None, scale, format, configuration("quantize_by_scale", x, format))
    return codes


def configuration(op: str, x: Tensor, format: str) -> Configuration:
    """What was measured to be the fastest for either op, by its name."""
    default = chosen("quantize_known", capability(x.device))
    return scheduled(of_rows(op, format, x), x.device, default)


def launched(
    x: Tensor, amax: Tensor | None, scale: Tensor | None, format: str, row: Configuration
) -> tuple[Tensor, Tensor]:
    """Codes by a kernel, compiled as a row says, and scales of rows, which are empty where amax is None."""
    from qcompiler.backends.triton.kernels.known import launch

    codes, scales = quantize.empty(x, format)
    by_row = scales if amax is not None else None
    with torch.cuda.device(x.device):
        launch(even(x), even(amax), even(scale), codes, by_row, format, row.constants["BLOCK"], row.options)
    return codes, scales if by_row is not None else scales[:0]


def saturated(x: Tensor, scale: Tensor, format: str) -> Tensor:
    """Codes of x [M, K] in float32 by a scale [1], with zeros behind them: [M, K rounded up to 16]."""
    kind, _ = CODES[format]
    found = torch.ops.qcompiler.quantize(x, scale.reshape(()), x.new_zeros((), dtype=kind), format)
    return packed(found)


def checked(x: Tensor, format: str, *, amax: Tensor | None = None, scale: Tensor | None = None) -> None:
    quantize.checked(x, format)
    check_beside("maxima", amax, x.shape[:1], x.device, (torch.float32,))
    check_beside("a scale", scale, (1,), x.device, (torch.float32,))
