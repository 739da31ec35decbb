"""A gradient as rows of 4-bit codes, and a sample of them.

dY_n ~ scale * sum of weights_i codes_i over the rows i = n, n + N, ...

split        14 and 1 times the two parts of bit splitting: 2 N rows (arXiv 2306.11987)
logarithmic  powers of two: N rows (LUQ, arXiv 2112.10769)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.numerics.logarithmic import log_codes
from qcompiler.numerics.sampling import kept_rows, leverage_scores, sample_rows, sampling_probabilities
from qcompiler.numerics.splitting import STEP, split_bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """codes int8 [M, C] and weights float32 [M], all finite; scale float32 (): not so where dY is not."""

    codes: Tensor
    weights: Tensor
    scale: Tensor


def split_rows(g: Tensor, noise: Tensor) -> Rows:
    """The upper parts, and below them the lower ones."""
    split = split_bits(g, noise)
    ones = torch.ones(len(g), device=g.device)
    return Rows(codes=split.rows, weights=torch.cat((ones * STEP, ones)), scale=split.scale)


def log_rows(g: Tensor, noise: Tensor) -> Rows:
    codes, scale = log_codes(g, noise)
    return Rows(codes=codes, weights=torch.ones(len(g), device=g.device), scale=scale)


@dataclass(frozen=True, kw_only=True)
class GradientCodes:
    """How a gradient becomes rows: make(g [N, C], draws from [0, 1)) -> `parts` * N rows."""

    make: Callable[[Tensor, Tensor], Rows]
    parts: int


GRADIENTS: Mapping[str, GradientCodes] = {
    "split": GradientCodes(make=split_rows, parts=2),
    "logarithmic": GradientCodes(make=log_rows, parts=1),
}


def sampled(
    codes: Tensor,
    weights: Tensor,
    share: float,
    draws: Callable[[int], Tensor],
    partners: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """About a share of the rows by their leverage scores: int64 indices and float32 weights, both [k].

    c_i = weights_i |codes_i| |partners_(i mod N)|        sum p_i = share M

    A row that is kept weighs weights_i / p_i, so that the mean is the sum of all; a share of 1 draws nothing.
    """
    rows = len(codes)
    if share == 1:
        return torch.arange(rows, device=codes.device), weights
    scores = leverage_scores(codes) * weights
    if partners is not None:
        scores = scores * leverage_scores(partners).repeat(rows // len(partners))
    index, kept = kept_rows(
        sample_rows(sampling_probabilities(scores, max(round(share * rows), 1)), draws(rows))
    )
    return index, kept * weights[index]
