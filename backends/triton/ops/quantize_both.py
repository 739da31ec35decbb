"""A matrix to codes of 8 bits in both orders, `torch.ops.qcompiler.triton_quantize_both`.

    (q, s) of the rows of x, (r, t) of its columns:        x[m, k] ~ q[m, k] s_m ~ r[k, m] t_k

What forward and backward of a linear layer need of one tensor, since each sums over another axis.
"""

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops import quantize
from qcompiler.backends.triton.ops.alignment import even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.quantize import codes_of, scale_of
from qcompiler.backends.triton.ops.schedule import of_rows, scheduled
from qcompiler.errors import InputError
from qcompiler.numerics.philox import Purpose, check_draws, uniform

Both = tuple[Tensor, Tensor, Tensor, Tensor]
PURPOSES = int(Purpose.GRAD_INPUT), int(Purpose.GRAD_WEIGHT)  # of draws, for rows and for columns


@torch.library.custom_op("qcompiler::triton_quantize_both", mutates_args=(), device_types="cpu")
def quantize_both(x: Tensor, format: str, key: Tensor | None = None, tensor: int = 0) -> Both:
    """[M, K]  -->  codes [M, K'] and scales [M], codes of the transpose [K, M'] and scales [K].

    K' and M' are rounded up to 16. The same bits as `quantize_rows` of x and of x.t().contiguous(). With a
    key, (seed, step, rank), codes are drawn, as `low_bit_mm` draws gradients: of x for what goes to an input,
    of its transpose for what goes to a weight.
    """
    checked(x, format, key, tensor)
    found: list[Tensor] = []
    for wide, purpose in zip((x.float(), x.float().t().contiguous()), PURPOSES, strict=True):
        scale = scale_of(wide, format)
        noise = (
            None if key is None else uniform(x.numel(), key, tensor=tensor, purpose=purpose).view(wide.shape)
        )
        found += [codes_of(wide, scale, format, noise), scale]
    codes, scale, turned, turned_scale = found
    return codes, scale, turned, turned_scale


@quantize_both.register_fake
def _(x: Tensor, format: str, key: Tensor | None = None, tensor: int = 0) -> Both:
    return empty(x, format)


@quantize_both.register_kernel("cuda")
def on_cuda(x: Tensor, format: str, key: Tensor | None = None, tensor: int = 0) -> Both:
    checked(x, format, key, tensor)
    mode = mode_of(x, key)
    row = chosen("quantize_both", capability(x.device), mode=mode)
    problem = of_rows("quantize_both", f"{format} {mode}".strip(), x)
    return launched(x, format, key, tensor, scheduled(problem, x.device, row))


def launched(x: Tensor, format: str, key: Tensor | None, tensor: int, row: Configuration) -> Both:
    """The same by kernels, of which that of the codes is compiled as a row says."""
    from qcompiler.backends.triton.kernels.quantize_both import launch

    amax = chosen("amax_both", capability(x.device))
    codes, scales, turned, turned_scales = empty(x, format)
    with torch.cuda.device(x.device):
        launch(
            even(x), codes, scales, turned, turned_scales, format, even(key), tensor, PURPOSES,
            {**amax.constants, **amax.options}, {**row.constants, **row.options},
        )  # fmt: skip
    return codes, scales, turned, turned_scales


def mode_of(x: Tensor, key: Tensor | None) -> str:
    """Whether codes are drawn, and whether rows of x and of its transpose begin at whole counters."""
    if key is None:
        return ""
    return "drawn" if x.shape[0] % 4 == x.shape[1] % 4 == 0 else "drawn ragged"


def empty(x: Tensor, format: str) -> Both:
    return (*quantize.empty(x, format), *quantize.empty(x.t(), format))


def checked(x: Tensor, format: str, key: Tensor | None, tensor: int) -> None:
    quantize.checked(x, format)
    if key is not None:
        check_draws(x.numel(), key, tensor, max(PURPOSES))
    if key is not None and (key.device != x.device or not key.is_contiguous()):
        raise InputError(f"a key on {key.device} with strides {key.stride()}", why=f"x is on {x.device}")
    if x.shape[0] == 0:
        raise InputError(f"columns of {x.dtype} {[*x.shape]}", why="a column of nothing has no codes")
