"""FP8 with a scale for each block: `torch.ops.qcompiler.triton_quantize_blocks`, `triton_fp8_block_linear`.

    x[m, k] ~ a[m, k] s[k / 128, m]        w[n, k] ~ b[n, k] t[n / 128, k / 128]
    y[m, n] = act(sum_g p_g s[g, m] t[n / 128, g] + bias_n) + residual[m, n]

p_g is the sum of a[m, k] b[n, k] over the 128 k of block g. Codes are e4m3, which have as many bits for all
numbers down to 1 / 28,672 of the largest under their scale, and fewer below: that largest is one of a block
here, and not of a row. (DeepSeek-V3, arXiv 2412.19437, section 3.3)
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import ScalingType, SwizzleType

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops import quantize
from qcompiler.backends.triton.ops.alignment import even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.linear import (
    ACTIVATIONS,
    check_beside,
    check_codes,
    check_name,
    ended,
    launched,
)
from qcompiler.backends.triton.ops.quantize import packed, padded
from qcompiler.backends.triton.ops.schedule import of_rows, scheduled
from qcompiler.numerics import ROW_BLOCK, SQUARE_BLOCK
from qcompiler.numerics.block_codes import block_codes

FORMAT, CODE = "e4m3", torch.float8_e4m3fn
SIDE = ROW_BLOCK.size


# ---------------------------------------------------------------- codes


@torch.library.custom_op("qcompiler::triton_quantize_blocks", mutates_args=(), device_types="cpu")
def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K]  -->  e4m3 [M, K rounded up to 16], zeros behind the K-th; scales float32 [ceil(K / 128), M].

    Scales of a block of k lie side by side, as tiles of a product read them. What `quantize_rows` says of a
    row holds for each block: of zeros it has scale 1; with NaN or an infinity scale NaN and codes 0.
    """
    quantize.checked(x, FORMAT)
    codes, scale = block_codes(x, ROW_BLOCK, FORMAT)
    return packed(codes), scale.t().clone(memory_format=torch.contiguous_format)


@quantize_blocks.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty(x)


@quantize_blocks.register_kernel("cuda")
def quantize_on_cuda(x: Tensor) -> tuple[Tensor, Tensor]:
    quantize.checked(x, FORMAT)
    row = chosen("quantize_blocks", capability(x.device))
    return quantized(x, scheduled(of_rows("quantize_blocks", FORMAT, x), x.device, row))


def quantized(x: Tensor, row: Configuration) -> tuple[Tensor, Tensor]:
    """The same by a kernel, compiled as a row says."""
    from qcompiler.backends.triton.kernels.blocks import launch

    codes, scales = empty(x)
    with torch.cuda.device(x.device):
        launch(even(x), codes, scales, row.constants["BM"], row.options)
    return codes, scales


def empty(x: Tensor) -> tuple[Tensor, Tensor]:
    M, K = x.shape
    return x.new_empty((M, padded(K)), dtype=CODE), x.new_empty((blocks_of(K), M), dtype=torch.float32)


def quantize_tiles(w: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [N, K]  -->  e4m3 [N, K rounded up to 16], and scales float32 [ceil(N / 128), ceil(K / 128)].

    By torch, and not by a kernel: a weight gets its codes once.
    """
    quantize.checked(w, FORMAT)
    codes, scale = block_codes(w, SQUARE_BLOCK, FORMAT)
    return packed(codes), scale


# ---------------------------------------------------------------- the product


@torch.library.custom_op("qcompiler::triton_fp8_block_linear", mutates_args=(), device_types="cpu")
def fp8_block_linear(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """e4m3 [M, K] and [N, K], scales as above  -->  [M, N] of a dtype; K is a multiple of 16.

    Sums are acc + p_g (s t) in float32, block after block: s t is rounded, then the sum, but not the product
    by itself. Tensor cores hold p_g in fewer bits; here it is a sum of float32, and what is added to acc is
    rounded to float64 before it is to float32.
    """
    checked(a, a_scale, b, b_scale, bias, residual, activation)
    total = a.new_zeros((len(a), len(b)), dtype=torch.float32)
    parts = (torch.split(codes.float(), SIDE, 1) for codes in (a, b))
    for s, t, p, q in zip(a_scale, b_scale.t(), *parts, strict=True):
        scale = s[:, None] * t.repeat_interleave(SIDE)[: len(b)]
        total = (total.double() + (p @ q.t()).double() * scale).float()  # the product is exact there
    return ended(total, bias, residual, activation, dtype)


@fp8_block_linear.register_fake
def _(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


@fp8_block_linear.register_kernel("cuda")
def on_cuda(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    from qcompiler.backends.triton.kernels.blocks import fp8_block_matmul

    checked(a, a_scale, b, b_scale, bias, residual, activation)
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
    s, t = a_scale.contiguous(), b_scale.contiguous()
    launched(fp8_block_matmul, "", a, s, b, t, bias, residual, activation, out)
    return out


def scaled_mm(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """The same by cuBLAS, in bfloat16 up to the bias; N and K are multiples of 128.

    Scales of a weight lie [K / 128 rounded up to 4, N / 128] there, columns side by side: the page of
    `torch.nn.functional.scaled_mm` does not say it, but torch's check of a call does.
    """
    over = -b_scale.shape[1] % 4
    squares = F.pad(b_scale, (0, over)) if over else b_scale
    y = F.scaled_mm(
        a, b.t(), a_scale.t(), ScalingType.BlockWise1x128, squares.t(), ScalingType.BlockWise128x128,
        SwizzleType.NO_SWIZZLE, SwizzleType.NO_SWIZZLE, None if bias is None else bias.bfloat16(),
        torch.bfloat16,
    )  # fmt: skip
    if activation == "none" and residual is None:
        return y.to(dtype)
    return ended(y.float(), None, residual, activation, dtype)


def checked(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> None:
    check_name(activation, ACTIVATIONS, "activation")
    check_codes(a, b, CODE)
    (M, K), N = a.shape, len(b)
    scales = ((a_scale, (blocks_of(K), M)), (b_scale, (blocks_of(N), blocks_of(K))))
    for scale, shape in scales:
        check_beside("scales", scale, shape, a.device, (torch.float32,))
    check_beside("bias", bias, (N,), a.device, ())
    check_beside("residual", residual, (M, N), a.device, ())


def blocks_of(numbers: int) -> int:
    """How many blocks of 128 hold so many."""
    return (numbers + SIDE - 1) // SIDE
