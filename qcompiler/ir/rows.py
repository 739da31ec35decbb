"""Codes with a scale for each row or block, taken at run time: `torch.ops.qcompiler.quantize_rows`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.numerics import PerGroup, parse_format
from qcompiler.numerics.block_codes import block_codes
from qcompiler.numerics.row_codes import CODES, row_codes

SHORT: Mapping[str, str] = {parse_format(name).name: name for name in CODES}
"""A format's full name, as plans write it -> its short one."""


@torch.library.custom_op("qcompiler::quantize_rows", mutates_args=())
def quantize_rows(x: Tensor, format: str, block: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """[..., K]  -->  codes [..., K], scales float32 and zero points, which are 0, both [..., 1].

    s = max |x| / L, q = clamp(rne(x / s), -L, L); see `numerics.row_codes`. They decode as groups of K, or of
    `block` numbers where there are such: scales are [..., ceil(K / block)] then.
    """
    if block:
        codes, scale = block_codes(x, PerGroup(axis=-1, size=block), SHORT[format])
    else:
        codes, scale = row_codes(x, SHORT[format])
        scale = scale[..., None]
    return codes, scale, torch.zeros_like(scale).to(codes.dtype)


@quantize_rows.register_fake
def _(x: Tensor, format: str, block: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    kind = CODES[SHORT[format]][0]
    one = (*x.shape[:-1], (x.shape[-1] + block - 1) // block if block else 1)
    return (
        x.new_empty(x.shape, dtype=kind),
        x.new_empty(one, dtype=torch.float32),
        x.new_empty(one, dtype=kind),
    )
