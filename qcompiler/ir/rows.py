"""Codes with a scale for each row, taken at run time: `torch.ops.qcompiler.quantize_rows`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.numerics import parse_format
from qcompiler.numerics.row_codes import CODES, row_codes

SHORT: Mapping[str, str] = {parse_format(name).name: name for name in CODES}
"""A format's full name, as plans write it -> its short one."""


@torch.library.custom_op("qcompiler::quantize_rows", mutates_args=())
def quantize_rows(x: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """[..., K]  -->  codes [..., K], scales float32 and zero points, which are 0, both [..., 1].

    s = max |x| / L, q = clamp(rne(x / s), -L, L); see `numerics.row_codes`. They decode as groups of K.
    """
    codes, scale = row_codes(x, SHORT[format])
    return codes, scale[..., None], torch.zeros_like(scale[..., None]).to(codes.dtype)


@quantize_rows.register_fake
def _(x: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    kind, one = CODES[SHORT[format]][0], (*x.shape[:-1], 1)
    return (
        x.new_empty(x.shape, dtype=kind),
        x.new_empty(one, dtype=torch.float32),
        x.new_empty(one, dtype=kind),
    )
