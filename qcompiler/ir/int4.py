"""Linear layers on 4-bit codes, forward and backward: `torch.ops.qcompiler.codes4`, `mm4`, `gradient4` ...

    X' = X H                               block Hadamard; block 1 leaves X as it is
    X^ = clamp(rne(X' / s_X), -7, 7)       s_X = unit mean|X'|        I_X = [|X' / s_X| <= 7]

    Y  = s_X s_W X^ W^^T                       forward
    dX = s_W (I_X o (dY W^)) H                 the straight-through gradient of that
    dW = s_X ((dY^T X^) o I_W) H

(arXiv 2306.11987, sections 3 and 4; a step counts as a constant.) dY is given by rows of 4-bit codes that
stand for it without bias, of which a share is sampled for each product. Codes X^ and mask I_X cross to
backward, 5 bits an element; what is needed of W is made anew from W.
"""

import torch
from torch import Tensor

from qcompiler.ir.products import multiplied
from qcompiler.numerics.hadamard import transform
from qcompiler.numerics.learnedstep import step_codes, within_step
from qcompiler.numerics.packing import join, split
from qcompiler.numerics.philox import Purpose, uniform
from qcompiler.numerics.rows import GRADIENTS, sampled

TINY = 1e-10  # so that no step is 0


@torch.library.custom_op("qcompiler::codes4", mutates_args=())
def codes4(x: Tensor, block: int, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    """[N, D]  -->  codes of 4 bits, uint8 [N, D / 2]; mask of 1 bit, uint8 [N, D / 8]; step float32 ()."""
    codes, mask, step = quantized(x, block, unit)
    return packed(codes, 4), packed(mask, 1), step


@codes4.register_fake
def _(x: Tensor, block: int, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    count, width = x.shape
    codes, mask = (x.new_empty((count, (width * bits + 7) // 8), dtype=torch.uint8) for bits in (4, 1))
    return codes, mask, x.new_empty((), dtype=torch.float32)


@torch.library.custom_op("qcompiler::mm4", mutates_args=())
def mm4(codes: Tensor, step: Tensor, w: Tensor, block: int, unit: float) -> Tensor:
    """Y = s_X s_W X^ W^^T, [N, C] of the type of w [C, D]; the codes are multiplied as integers."""
    right, _, w_step = quantized(w, block, unit)
    product = multiplied(unpacked(codes, 4, w.shape[1]), right.t())
    return (product * (step * w_step)).to(w.dtype)


@mm4.register_fake
def _(codes: Tensor, step: Tensor, w: Tensor, block: int, unit: float) -> Tensor:
    return w.new_empty((codes.shape[0], w.shape[0]))


@torch.library.custom_op("qcompiler::gradient4", mutates_args=())
def gradient4(dy: Tensor, how: str, key: Tensor, tensor: int) -> tuple[Tensor, Tensor, Tensor]:
    """dY [N, C]  -->  its rows: codes int8 [M, C], weights float32 [M], scale (); see `numerics.rows`."""
    noise = uniform(dy.numel(), key, tensor=tensor, purpose=Purpose.BIT_SPLITTING)
    rows = GRADIENTS[how].make(dy, noise)
    return rows.codes, rows.weights, rows.scale


@gradient4.register_fake
def _(dy: Tensor, how: str, key: Tensor, tensor: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = dy.shape[0] * GRADIENTS[how].parts
    weights = dy.new_empty((rows,), dtype=torch.float32)
    return dy.new_empty((rows, dy.shape[1]), dtype=torch.int8), weights, weights.new_empty(())


@torch.library.custom_op("qcompiler::grad_input4", mutates_args=())
def grad_input4(
    rows: Tensor,
    weights: Tensor,
    scale: Tensor,
    mask: Tensor,
    w: Tensor,
    block: int,
    unit: float,
    share: float,
    key: Tensor,
    tensor: int,
) -> Tensor:
    """dX = s_W (I_X o (dY W^)) H, [N, D]; the codes of the rows that are kept are multiplied as integers."""
    count = mask.shape[0]
    right, _, w_step = quantized(w, block, unit)
    index, factors = sampled(rows, weights, share, lambda n: draws(n, key, tensor))
    terms = multiplied(rows[index], right) * factors[:, None]
    total = terms.new_zeros(count, w.shape[1]).index_add_(0, index % count, terms)
    total *= unpacked(mask, 1, w.shape[1])
    return (transform(total, block) * (scale * w_step)).to(w.dtype)


@grad_input4.register_fake
def _(
    rows: Tensor,
    weights: Tensor,
    scale: Tensor,
    mask: Tensor,
    w: Tensor,
    block: int,
    unit: float,
    share: float,
    key: Tensor,
    tensor: int,
) -> Tensor:
    return w.new_empty((mask.shape[0], w.shape[1]))


@torch.library.custom_op("qcompiler::grad_weight4", mutates_args=())
def grad_weight4(
    rows: Tensor,
    weights: Tensor,
    scale: Tensor,
    codes: Tensor,
    step: Tensor,
    w: Tensor,
    block: int,
    unit: float,
    share: float,
    key: Tensor,
    tensor: int,
) -> Tensor:
    """dW = s_X ((dY^T X^) o I_W) H, [C, D].

    The rows are what is summed over here, each with a weight of its own, so that the sum is one of float32.
    """
    count = codes.shape[0]
    x = unpacked(codes, 4, w.shape[1])
    _, mask, _ = quantized(w, block, unit)
    index, factors = sampled(rows, weights, share, lambda n: draws(n, key, tensor), partners=x)
    total = (rows[index] * factors[:, None]).t() @ x[index % count].float()
    return (transform(total * mask, block) * (scale * step)).to(w.dtype)


@grad_weight4.register_fake
def _(
    rows: Tensor,
    weights: Tensor,
    scale: Tensor,
    codes: Tensor,
    step: Tensor,
    w: Tensor,
    block: int,
    unit: float,
    share: float,
    key: Tensor,
    tensor: int,
) -> Tensor:
    return w.new_empty(w.shape)


def quantized(x: Tensor, block: int, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int8 and mask bool of the shape of x, and the step, all of x H in float32."""
    turned = transform(x.float(), block)
    step = turned.abs().mean() * unit + TINY
    return step_codes(turned, step), within_step(turned, step), step


def draws(count: int, key: Tensor, tensor: int) -> Tensor:
    return uniform(count, key, tensor=tensor, purpose=Purpose.ROW_SAMPLING)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes of `bits` bits, row by row, low bits first: [N, D] --> uint8 [N, ceil(D bits / 8)]."""
    fields = codes.view(torch.uint8) & ((1 << bits) - 1)
    filled = torch.nn.functional.pad(fields, (0, -codes.shape[1] % (8 // bits)))
    return join(filled.flatten(), bits).view(len(codes), -1)


def unpacked(bytes_: Tensor, bits: int, width: int) -> Tensor:
    """Signed codes of 4 bits, or a mask of one: int8 [N, width]."""
    fields = split(bytes_.flatten(), bits).view(len(bytes_), -1)[:, :width]
    sign = 8 if bits == 4 else 0
    return (fields ^ sign).to(torch.int8) - sign
