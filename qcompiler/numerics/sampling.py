"""Products from a sample of their rank-one terms (leverage score sampling, arXiv 2306.11987)."""

import torch
from torch import Tensor

from qcompiler.errors import InputError

GRID = 2.0**-24  # of the draws: a probability between two of its points would be met by neither


def leverage_scores(rows: Tensor, partners: Tensor | None = None) -> Tensor:
    """c_i = |rows_i| |partners_i|, or |rows_i| where each row makes a row of the product; float32 [n]."""
    return _lengths(rows) if partners is None else _lengths(rows) * _lengths(partners)


def sampling_probabilities(scores: Tensor, budget: int) -> Tensor:
    """p_i = min(1, lambda c_i) with sum p = budget: the sample of that size with the least variance; [n].

    Of the scores in falling order the first k are kept for certain, k the least for which the rest fit:

    lambda = (budget - k) / (c_k + c_(k+1) + ...)        lambda c_k <= 1

    Each p is rounded up to a multiple of 2^-24, on which draws lie: u < p then has probability p exactly,
    and the sum exceeds the budget by no more than n 2^-24. A score of 0 has p = 0, so that with fewer than
    `budget` others the sum is their number.
    """
    if not 1 <= budget <= len(scores):
        raise InputError(f"no sample of {budget} of {len(scores)} rows", fix="keep at least one, at most all")
    falling = scores.to(torch.float64).sort(descending=True).values
    rest = falling.flip(0).cumsum(0).flip(0)
    left = budget - torch.arange(len(scores), dtype=torch.float64, device=scores.device)
    certain = ((left * falling > rest) & (left > 0)).sum()  # true for the first k and for no other
    at = certain.clamp(max=len(scores) - 1)
    factor = left.gather(0, at[None]) / rest.gather(0, at[None])
    share = torch.where(scores > 0, scores * factor.nan_to_num(nan=0.0), 0.0).clamp(max=1.0)
    return ((share / GRID).ceil() * GRID).clamp(max=1.0).to(torch.float32)


def sample_rows(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Weights [u < p] / p of a Bernoulli sample, float32 [n]: mean 1, or 0 where p = 0."""
    kept = noise < probabilities
    return torch.where(kept, probabilities.reciprocal(), 0.0)


def kept_rows(weights: Tensor, multiple: int = 32) -> tuple[Tensor, Tensor]:
    """Indices and weights of the rows that were kept, filled up to a multiple with row 0 at weight 0.

    weights [n]  -->  int64 [k], float32 [k]        multiple divides k
    """
    indices = weights.nonzero().flatten()
    padding = (0, -len(indices) % multiple)
    pad = torch.nn.functional.pad
    return pad(indices, padding), pad(weights[indices], padding)


def sampling_variance(probabilities: Tensor, scores: Tensor) -> Tensor:
    """sum (1 - p_i) / p_i c_i^2 over p_i > 0: the mean squared error of the product (Proposition 4.1); ()."""
    p, c = probabilities.to(torch.float64), scores.to(torch.float64)
    return torch.where(p > 0, (1 - p) / p * c.square(), 0.0).sum()


def _lengths(rows: Tensor) -> Tensor:
    return rows.to(torch.float32).flatten(1).square().sum(1).sqrt()
