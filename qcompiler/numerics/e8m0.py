"""E8M0, the scale format of block-scaled formats: powers of two from 2^-127 to 2^127, and NaN."""

import torch
from torch import Tensor

from qcompiler.numerics.exponent import exp2, floor_log2

E8M0_BIAS = 127
E8M0_NAN = 255


def e8m0_encode(scale: Tensor) -> Tensor:
    """Codes of scales that are powers of two.

    2^k  -->  k + 127        -127 <= k <= 127; exact
    NaN  -->  255
    """
    codes = (floor_log2(scale) + E8M0_BIAS).clamp(0, 2 * E8M0_BIAS)
    return codes.masked_fill(torch.isnan(scale), E8M0_NAN).to(torch.uint8)


def e8m0_decode(codes: Tensor) -> Tensor:
    """Scales (float32) of codes: 2^(code - 127), NaN for 255; 2^-127 is a subnormal float32."""
    exponent = codes.to(torch.int32) - E8M0_BIAS
    scale = exp2(exponent.clamp(-126, 127)) * torch.where(exponent == -E8M0_BIAS, 0.5, 1.0)
    return scale.masked_fill(codes == E8M0_NAN, torch.nan)
