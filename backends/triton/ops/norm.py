"""A residual added, rows normalised and quantized, `torch.ops.qcompiler.triton_norm_quantize`.

h = x + r                             in the type of x, which goes on as the residual stream
RMS      y = h p w                    p = 1 / sqrt(sum h^2 / n + eps)         (arXiv 1910.07467, eq. 4)
layer    y = (h - m) p w + b          m = sum h / n,  p = 1 / sqrt(sum (h - m)^2 / n + eps)
q, s     as in `quantize_rows`, of y in float32; or by a scale that is given
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.ops import quantize
from qcompiler.backends.triton.ops.alignment import even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.held import check_length, configuration
from qcompiler.backends.triton.ops.linear import check_name
from qcompiler.backends.triton.ops.quantize import codes_of, padded, scale_of
from qcompiler.backends.triton.ops.schedule import of_rows, scheduled
from qcompiler.errors import InputError

NORMS = ("rms", "layer")


@torch.library.custom_op("qcompiler::triton_norm_quantize", mutates_args=(), device_types="cpu")
def norm_quantize(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    norm: str,
    eps: float,
    format: str,
    floats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and residual [M, K], weight and bias [K]  -->  codes [M, K'], scales [M], h [M, K] and y [M, K].

    scale: float32 [1] of all rows, else each has its own; beyond it codes saturate. h is empty without a
    residual and y, in the type of x, unless floats are wanted. Rows that are not finite get NaN as their
    scale and codes of 0 in either case. What is summed, and in which order, `total` says: it is all exact.
    """
    checked(x, residual, weight, bias, scale, norm, format)
    h = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    wide, count = h.float(), float(x.shape[1])
    if norm == "layer":
        wide = wide - (total(wide) / count)[:, None]
    variance = total(wide * wide) / count
    root = torch.sqrt((variance + eps).double()).float()  # of float32, torch's may be one unit off
    wide = wide * (1.0 / root)[:, None] * weight.float()
    wide = wide if bias is None else wide + bias.float()
    found = scale_of(wide, format)
    if scale is not None:
        found = scale.expand_as(found).masked_fill(found.isnan(), torch.nan)
    none = x.new_empty((0, x.shape[1]))
    codes = codes_of(wide, found, format)
    return codes, found, none if residual is None else h, wide.to(x.dtype) if floats else none.clone()


@norm_quantize.register_fake
def _(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    norm: str,
    eps: float,
    format: str,
    floats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty(x, residual, format, floats)


@norm_quantize.register_kernel("cuda")
def on_cuda(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    norm: str,
    eps: float,
    format: str,
    floats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checked(x, residual, weight, bias, scale, norm, format)
    row = configuration("norm_quantize", padded(x.shape[1]), capability(x.device))
    words = (format, norm, "residual" * (residual is not None), "floats" * floats)
    problem = of_rows("norm_quantize", " ".join(filter(None, words)), x)
    row = scheduled(problem, x.device, row)
    return launched(x, residual, weight, bias, scale, norm, eps, format, floats, row)


def launched(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    norm: str,
    eps: float,
    format: str,
    floats: bool,
    row: Configuration,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same by a kernel, compiled as a row says."""
    from qcompiler.backends.triton.kernels.norm import launch

    codes, scales, h, y = empty(x, residual, format, floats)
    with torch.cuda.device(x.device):
        launch(
            even(x), even(residual), even(weight), even(bias), even(scale), codes, scales,
            None if residual is None else h, y if floats else None,
            eps, norm == "layer", format, row.constants, row.options,
        )  # fmt: skip
    return codes, scales, h, y


def total(x: Tensor) -> Tensor:
    """The sum of each row: neighbours are added, then neighbours of those sums, ((x0 + x1) + (x2 + x3)) + ...

    Zeros stand where a row has no more numbers. [M, K]  -->  [M]
    """
    x = F.pad(x, (0, 2 ** (x.shape[1] - 1).bit_length() - x.shape[1]))
    while x.shape[1] > 1:
        x = x[:, ::2] + x[:, 1::2]
    return x[:, 0] + 0.0  # which makes -0 a 0


def empty(
    x: Tensor, residual: Tensor | None, format: str, floats: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    h, y = (x.new_empty((rows if wanted else 0, columns)) for wanted in (residual is not None, floats))
    return (*quantize.empty(x, format), h, y)


def checked(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    norm: str,
    format: str,
) -> None:
    quantize.checked(x, format)
    check_name(norm, NORMS, "norm")
    check_length(x.shape[1])
    given = (("residual", residual, x.shape, x.dtype), ("weight", weight, x.shape[1:], None),
             ("bias", bias, x.shape[1:], None), ("scale", scale, (1,), torch.float32))  # fmt: skip
    for what, one, shape, kind in given:
        if one is not None and (
            one.shape != shape
            or one.stride(-1) != 1
            or one.dtype != (kind or one.dtype)
            or one.device != x.device
        ):
            raise InputError(
                f"{what} {one.dtype} {[*one.shape]} on {one.device}",
                why=f"{kind or 'floats'} {[*shape]} on {x.device} is wanted, contiguous",
            )
