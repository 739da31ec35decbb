"""GPTQ: round column after column, and let the columns to come make up for the error.

    q_j = Q(w_j),   e = (w_j - D(q_j)) / U_jj,   W[:, j+1:] -= e U[j, j+1:]
    U upper, U^T U = (H + lambda I)^-1

arXiv 2210.17323, section 3.3 and algorithm 1; H = X X^T over the calibration data, lambda = 0.01 mean diag H.
With a diagonal H nothing is passed on, and the result is that of rounding to nearest; so it is for a column
that no sample reaches.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qcompiler.numerics import IntFormat, PerGroup, QuantParams

DAMPING = 0.01
BLOCK = 128  # columns whose corrections are gathered before they are passed on

Params = Callable[[Tensor], QuantParams]
"""Scales of a weight [out, columns] under one granularity."""


def compensated(weight: Tensor, moment: Tensor, params: Params, *, ordered: bool = False) -> Tensor | None:
    """A weight [out, in] on the grid of `params`; None where H has no inverse.

    moment: H [in, in] in float64.
    ordered: take columns by falling H_jj (act-order); scales are then those of the untouched weight, since
        the columns of a group are no longer neighbours. Otherwise a group gets its scale when it is reached.
    """
    factor = inverse_factor(moment, order := falling(moment) if ordered else None)
    if factor is None:
        return None
    fixed = params(weight)
    size = fixed.granularity.size if isinstance(fixed.granularity, PerGroup) else weight.shape[1]
    reached = None if ordered or size == weight.shape[1] else params
    columns = torch.arange(weight.shape[1]) if order is None else order
    rounded = sweep(weight[:, columns].double(), factor, fixed, columns // size, size, reached)
    return torch.empty_like(weight).index_copy_(1, columns, rounded)


def falling(moment: Tensor) -> Tensor:
    return moment.diagonal().argsort(descending=True, stable=True)


def inverse_factor(moment: Tensor, order: Tensor | None) -> Tensor | None:
    """The upper U with U^T U = (H + lambda I)^-1, of the columns in `order`."""
    damped = moment.clone() if order is None else moment[order][:, order]
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if int(failed) else upper


def sweep(
    weight: Tensor, factor: Tensor, params: QuantParams, group: Tensor, size: int, reached: Params | None
) -> Tensor:
    """Round the columns in order; `group` tells the scale of each, `reached` renews it at a group's start."""
    width = weight.shape[1]
    block = max(BLOCK // size, 1) * size if reached else BLOCK
    scale, zero = by_group(params)
    result = torch.empty_like(weight, dtype=torch.float32)
    for start in range(0, width, block):
        end = min(start + block, width)
        errors = torch.zeros(len(weight), end - start, dtype=torch.float64)
        for j in range(start, end):
            g = int(group[j])
            if reached is not None and j % size == 0:
                fresh_scale, fresh_zero = by_group(reached(weight[:, j : j + size].float()))
                scale[:, g], zero[:, g] = fresh_scale[:, 0], fresh_zero[:, 0]
            result[:, j] = snapped(weight[:, j].float(), scale[:, g], zero[:, g], params.format)
            error = (weight[:, j] - result[:, j]) / factor[j, j]
            weight[:, j + 1 : end] -= error[:, None] * factor[j, j + 1 : end]
            errors[:, j - start] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
    return result


def by_group(params: QuantParams) -> tuple[Tensor, Tensor]:
    """Scales and zero points as [out, groups]."""
    rows = len(params.scale)
    return params.scale.reshape(rows, -1).clone(), params.zero_point.reshape(rows, -1).float()


def snapped(column: Tensor, scale: Tensor, zero: Tensor, format: object) -> Tensor:
    """D(Q(w)), as `quantize` and `dequantize` compute it, for one column."""
    assert isinstance(format, IntFormat)
    codes = (torch.round(column / scale) + zero).clamp(format.qmin, format.qmax)
    return (codes - zero) * scale
