"""A matrix to codes of 8 bits in both orders, `torch.ops.qcompiler.triton_quantize_both`.

    (q, s) of the rows of x, (r, t) of its columns:        x[m, k] ~ q[m, k] s_m ~ r[k, m] t_k

What forward and backward of a linear layer need of one tensor, since each sums over another axis.
"""

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.ops import quantize
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.errors import InputError

Both = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("qcompiler::triton_quantize_both", mutates_args=(), device_types="cpu")
def quantize_both(x: Tensor, format: str) -> Both:
    """[M, K]  -->  codes [M, K'] and scales [M], codes of the transpose [K, M'] and scales [K].

    K' and M' are rounded up to 16. The same bits as `quantize_rows` of x and of x.t().contiguous().
    """
    checked(x, format)
    return (*quantize_rows(x, format), *quantize_rows(x.t().contiguous(), format))


@quantize_both.register_fake
def _(x: Tensor, format: str) -> Both:
    return empty(x, format)


@quantize_both.register_kernel("cuda")
def on_cuda(x: Tensor, format: str) -> Both:
    from qcompiler.backends.triton.kernels.quantize_both import launch

    checked(x, format)
    amax, tiles = (chosen(name, capability(x.device)) for name in ("amax_both", "quantize_both"))
    codes, scales, turned, turned_scales = empty(x, format)
    with torch.cuda.device(x.device):
        launch(
            x, codes, scales, turned, turned_scales, format,
            {**amax.constants, **amax.options}, {**tiles.constants, **tiles.options},
        )  # fmt: skip
    return codes, scales, turned, turned_scales


def empty(x: Tensor, format: str) -> Both:
    return (*quantize.empty(x, format), *quantize.empty(x.t(), format))


def checked(x: Tensor, format: str) -> None:
    quantize.checked(x, format)
    if x.shape[0] == 0:
        raise InputError(f"columns of {x.dtype} {[*x.shape]}", why="a column of nothing has no codes")
