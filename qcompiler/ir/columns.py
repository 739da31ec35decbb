"""Convolutions as products of matrices; of int8 codes the sums are exact.

    y[n, o, p] = sum_(k, c) x[n, c, stride p + dilation k - before] w[o, c, k]
               = sum_j columns[(n, p), j] w[j, o]        j = (k, c)

Channels lie last, so that a line of a kernel is one run of bytes. The columns of a few samples, or of a few
lines of one, exist at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from qcompiler.ir.products import DEEPEST, summed

CHUNK = 2**20  # bytes of columns at a time, and of their sums, which stay in a core's cache in between


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What each position sees of the codes, one number for each axis.

    Tap k of position p reads code i where stride p + dilation k = before + step i, and 0 where there is none.
    """

    kernel: tuple[int, ...]
    positions: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    step: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """How far all positions together see."""
        axes = zip(self.kernel, self.positions, self.stride, self.dilation, strict=True)
        return tuple(
            (count - 1) * stride + dilation * (size - 1) + 1 for size, count, stride, dilation in axes
        )


def correlations(
    codes: Tensor, weight: Tensor, windows: Windows, *, channels_last: bool
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(samples, lines, their sums [samples, O, lines, ...]) of codes [N, C, ...] and a weight [O, C, ...].

    channels_last: how the sums lie.
    """
    matrix = weight.movedim(1, -1).flatten(1)  # [O, (k, c)]
    for samples, lines, columns in pieces(codes, windows, 4 * len(weight)):
        positions = (samples.stop - samples.start, lines.stop - lines.start, *windows.positions[1:])
        if channels_last:
            sums = summed(columns, matrix.t()).view(*positions, -1).movedim(-1, 1)
        else:
            sums = summed(matrix, columns.t()).view(-1, *positions).movedim(0, 1)
        yield samples, lines, sums


def weight_sums(gradient: Tensor, codes: Tensor, windows: Windows) -> Tensor:
    """sum_(n, p) gradient[n, o, p] columns[(n, p), (k, c)]: [O, C, ...]."""
    shape = (gradient.shape[1], *windows.kernel, codes.shape[1])
    total = torch.zeros(shape, dtype=sum_type(gradient), device=codes.device)
    for samples, lines, columns in pieces(codes, windows, gradient.shape[1] * gradient.itemsize):
        part = gradient[samples, :, lines].movedim(1, 0).flatten(1)
        total += summed(part, columns).view(shape)
    return total.movedim(-1, 1)


def sum_type(gradient: Tensor) -> torch.dtype:
    """In which sums over samples and positions are exact, or for floats as good as torch's."""
    if gradient.dtype != torch.int8:
        return torch.float32
    depth = gradient.shape[0] * gradient.shape[2:].numel()
    return torch.int32 if depth <= DEEPEST else torch.float64  # sums below 2^53 are exact


def pieces(codes: Tensor, windows: Windows, beside: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """(samples, lines of positions, their columns [(n, p), (k, c)]), as many at a time as CHUNK holds.

    beside: bytes that each position takes beside its column, in the other matrix or the result.
    """
    line = prod(windows.positions[1:])
    width = prod(windows.kernel) * codes.shape[1] * codes.itemsize
    most = min(CHUNK // max(width, beside), DEEPEST) // line  # lines at a time
    lines = windows.positions[0]
    for samples in slices(codes.shape[0], most // lines):
        laid = laid_out(codes[samples], windows)
        for part in slices(lines, most):
            yield samples, part, columns(laid, windows, part)


def slices(count: int, size: int) -> Iterator[slice]:
    """0 .. count in slices of a size, which is 1 at least."""
    for start in range(0, count, max(size, 1)):
        yield slice(start, min(start + max(size, 1), count))


def laid_out(codes: Tensor, windows: Windows) -> Tensor:
    """[n, C, ...] -> [n, ..., C], as far as positions see, zeros before, between and behind the codes."""
    result = codes.new_zeros((codes.shape[0], *windows.lengths, codes.shape[1]))
    seen, places = [], []
    axes = zip(codes.shape[2:], windows.lengths, windows.before, windows.step, strict=True)
    for count, length, before, step in axes:
        first = max(0, -(before // step))  # before + step first >= 0
        last = max(first, min(count, -((before - length) // step)))  # before + step last >= length
        seen.append(slice(first, last))
        places.append(slice(before + step * first, max(0, before + step * (last - 1) + 1), step))
    result[:, *places] = codes.movedim(1, -1)[:, *seen]
    return result


def columns(laid: Tensor, windows: Windows, lines: slice) -> Tensor:
    """The matrix [(n, p), (k, c)] of some lines of positions."""
    batch, *along, channel = laid.stride()
    positions = (lines.stop - lines.start, *windows.positions[1:])
    far = [stride * each for stride, each in zip(windows.stride, along, strict=True)]
    near = [dilation * each for dilation, each in zip(windows.dilation, along, strict=True)]
    view = laid.as_strided(
        (laid.shape[0], *positions, *windows.kernel, laid.shape[-1]),
        (batch, *far, *near, channel),
        laid.storage_offset() + lines.start * far[0],
    )
    return view.reshape(laid.shape[0] * prod(positions), -1).contiguous()  # rows of a view may overlap
