"""Numbers as codes of 8 bits, each block with the scale that a row of its numbers would have.

    x  -->  q, s        s = max |x| / L of the block, q = clamp(rne(x / s), -L, L), x ~ q s

What is not finite spoils its block and no other. Blocks of 128 along a row are those of activations, squares
of 128 those of weights (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
"""

import torch
from torch import Tensor

from qcompiler.numerics.granularity import Granularity, reduce_amax, scale_shape, spread
from qcompiler.numerics.row_codes import codes_of, scale_of


def block_codes(x: Tensor, granularity: Granularity, format: str) -> tuple[Tensor, Tensor]:
    """Codes of the shape of x, and scales float32 of `scale_shape`; the last blocks may be short.

    An empty batch has empty codes, and as many scales as it has blocks: none.
    """
    if x.numel() == 0:
        none = scale_shape(x.shape, granularity)
        return codes_of(x.float(), x.new_ones(1, dtype=torch.float32), format), x.new_ones(none).float()
    scale = scale_of(reduce_amax(x.float(), granularity)[..., None], format)
    return codes_of(x.float()[..., None], spread(scale, x.shape, granularity), format)[..., 0], scale


def decoded(codes: Tensor, scale: Tensor, granularity: Granularity) -> Tensor:
    """q s in float64, where it is exact."""
    return codes.double() * spread(scale, codes.shape, granularity).to(torch.float64)
