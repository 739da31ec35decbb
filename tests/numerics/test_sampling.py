"""Leverage score sampling: the size of the sample, its mean, and its variance against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.numerics import (
    kept_rows,
    leverage_scores,
    measure_bias,
    noise_key,
    sample_rows,
    sampling_probabilities,
    sampling_variance,
    split_bits,
    uniform,
)


def draws(count: int, tensor: int = 0) -> Tensor:
    return uniform(count, noise_key(5), tensor=tensor, purpose=3)


def by_rounds(scores: list[float], budget: int) -> list[float]:
    """The definition as it is written: share out, clamp to 1, share out the rest again."""
    certain: set[int] = set()
    while True:
        rest = sum(c for i, c in enumerate(scores) if i not in certain)
        p = [
            1.0 if i in certain else (budget - len(certain)) * c / rest if rest else 0.0
            for i, c in enumerate(scores)
        ]
        above = {i for i, value in enumerate(p) if value > 1}
        if not above:
            return p
        certain |= above


@given(
    scores=st.lists(st.just(0.0) | st.floats(2**-10, 2**10, width=32), min_size=1, max_size=30),
    share=st.floats(0, 1),
)
def test_probabilities_are_those_of_the_definition(scores: list[float], share: float) -> None:
    budget = max(round(share * len(scores)), 1)
    found = sampling_probabilities(torch.tensor(scores), budget)
    wanted = torch.tensor(by_rounds(scores, budget), dtype=torch.float64).clamp(max=1)
    assert bool(((found - wanted).abs() < 1e-6).all())
    positive = sum(score > 0 for score in scores)
    assert found.double().sum().item() == pytest.approx(min(budget, positive), abs=1e-5)
    assert torch.equal(found * 2**24, (found * 2**24).round())  # on the grid of the draws


@pytest.fixture(scope="module")
def operands() -> tuple[Tensor, Tensor]:
    """Heavy-tailed rows, as gradients of tokens are."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(64, 1, generator=generator) ** 6
    return torch.randn(64, 8, generator=generator) * scales, torch.randn(64, 6, generator=generator)


def sampled(g: Tensor, x: Tensor, p: Tensor, count: int) -> Tensor:
    """`count` draws of g^T x from samples of its rows; [count, ...]."""
    weights = sample_rows(p, draws(count * len(p)).view(count, -1)).double()
    return torch.einsum("kn,nc,nd->kcd", weights, g.double(), x.double())


def test_the_mean_is_the_product_and_the_variance_the_formula(
    operands: tuple[Tensor, Tensor],
) -> None:
    g, x = operands
    scores = leverage_scores(g, x)
    p = sampling_probabilities(scores, 32)
    exact = g.double().T @ x.double()
    found = measure_bias(sampled(g, x, p, 20_000), exact)
    # a standard normal number: above 4 once in 30,000 such tests
    assert found.z < 4
    variance = found.error**2 * exact.square().sum()
    assert variance.item() == pytest.approx(sampling_variance(p, scores).item(), rel=0.02)


def test_weights_of_one_are_a_bias_that_is_found(operands: tuple[Tensor, Tensor]) -> None:
    g, x = operands
    p = sampling_probabilities(leverage_scores(g, x), 32)
    kept = (draws(2000 * 64).view(2000, -1) < p).double()
    many = torch.einsum("kn,nc,nd->kcd", kept, g.double(), x.double())
    assert measure_bias(many, g.double().T @ x.double()).z > 10


def test_leverage_beats_uniform_sampling(operands: tuple[Tensor, Tensor]) -> None:
    scores = leverage_scores(*operands)
    ours = sampling_variance(sampling_probabilities(scores, 32), scores)
    uniformly = sampling_variance(torch.full((64,), 0.5), scores)
    assert ours < 0.02 * uniformly


@pytest.mark.parametrize("product", ["grad-weight", "grad-input"])
def test_a_split_gradient_gives_both_products_without_bias(product: str) -> None:
    """The backward pass of INT4 training: 2 N rows of 4 bits, of which N are kept on average."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(32, 8, generator=generator) * torch.rand(32, 1, generator=generator) ** 4
    x = torch.randint(-7, 8, (32, 6), generator=generator).float()
    w = torch.randint(-7, 8, (8, 6), generator=generator).float()
    noise = draws(600 * 32 * 8, tensor=1).view(600, 32, 8)

    def draw(k: int) -> Tensor:
        split = split_bits(g, noise[k])
        rows, partners = split.rows.float() * split.factors[:, None], x.repeat(2, 1)
        scores = leverage_scores(rows, partners if product == "grad-weight" else None)
        sample = uniform(64, noise_key(5, k), tensor=1, purpose=3)
        indices, weights = kept_rows(sample_rows(sampling_probabilities(scores, 32), sample))
        terms = rows[indices] * weights[:, None]
        if product == "grad-weight":
            return terms.T @ partners[indices]
        return torch.zeros(32, 6).index_add(0, indices % 32, terms @ w)

    found = measure_bias(map(draw, range(600)), g.T @ x if product == "grad-weight" else g @ w)
    assert found.z < 4
    assert found.bias < 1.2 * found.floor


@given(weights=st.lists(st.sampled_from([0.0, 1.0, 2.5]), max_size=80), multiple=st.sampled_from([1, 8, 32]))
def test_kept_rows_are_filled_up_without_weight(weights: list[float], multiple: int) -> None:
    indices, kept = kept_rows(torch.tensor(weights), multiple)
    assert len(indices) == len(kept)
    assert len(kept) % multiple == 0
    total = torch.zeros(max(len(weights), 1)).index_add(0, indices, kept)
    assert total[: len(weights)].tolist() == weights


def test_rows_of_zeros_are_never_kept() -> None:
    p = sampling_probabilities(torch.tensor([0.0, 0.0, 3.0, 0.0]), 2)
    assert p.tolist() == [0, 0, 1, 0]
    assert sample_rows(p, torch.zeros(4)).tolist() == [0, 0, 1, 0]


def test_no_row_that_counts_is_out_of_reach_of_the_draws() -> None:
    p = sampling_probabilities(torch.tensor([1e-12, 1.0, 1.0]), 1)
    assert p[0] == 2**-24


@pytest.mark.parametrize("budget", [0, 5])
def test_budgets_beyond_the_rows_are_refused(budget: int) -> None:
    with pytest.raises(InputError):
        sampling_probabilities(torch.ones(4), budget)
