"""A linear layer on 4-bit codes: its product, and gradients whose mean is the straight-through one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.ir import int4
from qcompiler.numerics import Bias, BitSplit, measure_bias, noise_key, rows, transform
from qcompiler.training_recipe import LEARNED, NORMAL

ops = torch.ops.qcompiler
DRAWS = 150
REJECTED = 4  # z is a standard normal number where there is no bias: above 4 once in 30,000 such tests


def straight_through(x: Tensor, w: Tensor, block: int) -> Tensor:
    """The product of what both are rounded to, float64; a gradient passes where nothing was clipped."""

    def rounded(y: Tensor) -> Tensor:
        codes, mask, step = int4.quantized(y.detach().float(), block, LEARNED)
        passing = transform(y, block) * mask
        return passing + (codes.double() * step - passing).detach()

    return rounded(x) @ rounded(w).t()


class Case:
    """A layer with outliers in its input, weights and gradient."""

    def __init__(self, tokens: int = 40, width: int = 48, outputs: int = 24) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x, self.w, self.dy = (
            torch.randn(shape, generator=generator)
            for shape in ((tokens, width), (outputs, width), (tokens, outputs))
        )
        self.x[:, :3] *= 8
        self.w[:2] *= 4
        self.dy *= torch.rand(tokens, 1, generator=generator).pow(3)

    def exact(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        x, w = self.x.double().requires_grad_(), self.w.double().requires_grad_()
        y = straight_through(x, w, block)
        dx, dw = torch.autograd.grad(y, (x, w), self.dy.double())
        return y.detach(), dx, dw

    def drawn(self, how: str, block: int, step: int, share: float = 0.5) -> tuple[Tensor, Tensor]:
        key = noise_key(5, step)
        codes, mask, scale = ops.codes4(self.x, block, LEARNED)
        given = ops.gradient4(self.dy, how, key, 1)
        dx = ops.grad_input4(*given, mask, self.w, block, LEARNED, share, key, 2)
        return dx, ops.grad_weight4(*given, codes, scale, self.w, block, LEARNED, share, key, 3)

    def biases(self, how: str, block: int, share: float = 0.5) -> list[Bias]:
        _, *exact = self.exact(block)
        draws = zip(*(self.drawn(how, block, step, share) for step in range(DRAWS)), strict=True)
        return [measure_bias(many, one) for many, one in zip(draws, exact, strict=True)]


@pytest.mark.parametrize("block", [1, 16])
def test_the_product_of_codes_is_that_of_what_they_stand_for(block: int) -> None:
    case = Case()
    codes, _, step = ops.codes4(case.x, block, LEARNED)
    exact, _, _ = case.exact(block)
    found = ops.mm4(codes, step, case.w, block, LEARNED)
    assert float((found - exact).norm() / exact.norm()) < 1e-6  # the integers are exact, the steps float32


@pytest.mark.parametrize("width", [64, 61])
def test_codes_and_masks_are_packed_and_come_back(width: int) -> None:
    x = torch.randn(7, width)
    codes, mask, step = int4.quantized(x, 1, LEARNED)
    packed, packed_mask, packed_step = ops.codes4(x, 1, LEARNED)
    assert (packed.shape[1], packed_mask.shape[1]) == (-(-width // 2), -(-width // 8))
    assert torch.equal(int4.unpacked(packed, 4, width), codes)
    assert torch.equal(int4.unpacked(packed_mask, 1, width), mask.to(torch.int8))
    assert packed_step == step


def test_the_step_for_normal_numbers_is_that_of_least_error() -> None:
    x = torch.randn(400, 256)

    def error(unit: float) -> float:
        codes, _, step = int4.quantized(x, 1, unit)
        return float((codes * step - x).square().mean())

    assert min((0.01 * n for n in range(30, 90, 2)), key=error) == pytest.approx(NORMAL)
    assert error(NORMAL) < 0.5 * error(LEARNED)


def test_the_transform_spreads_outliers() -> None:
    x, w = torch.randn(256, 768), torch.randn(256, 768)
    x[:, :8] *= 8
    exact = x @ w.t()

    def error(block: int) -> float:
        codes, _, step = ops.codes4(x, block, LEARNED)
        return float((ops.mm4(codes, step, w, block, LEARNED) - exact).norm() / exact.norm())

    assert error(32) < 0.8 * error(1)


@pytest.mark.parametrize(
    ("how", "block", "share"), [("split", 16, 0.5), ("split", 32, 1.0), ("logarithmic", 1, 1.0)]
)
def test_the_mean_of_draws_is_the_straight_through_gradient(how: str, block: int, share: float) -> None:
    for found in Case(width=64).biases(how, block, share):
        assert found.z < REJECTED


def published(g: Tensor, noise: Tensor) -> BitSplit:
    """The authors' code: steps of max / 98, and both parts clamped to +-6."""
    scale = g.abs().max() / 98
    t = g / scale
    upper = (t / 14).clamp(-6, 6).round()
    lower = (t - 14 * upper + noise.view(g.shape) - 0.5).clamp(-6, 6).round()
    return BitSplit(upper=upper.to(torch.int8), lower=lower.to(torch.int8), scale=scale)


def test_the_published_splitting_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "split_bits", published)
    assert all(found.z > REJECTED for found in Case().biases("split", 16))


def test_a_mask_left_out_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(x: Tensor, block: int, unit: float) -> tuple[Tensor, Tensor, Tensor]:
        codes, mask, step = quantized(x, block, unit)
        return codes, torch.ones_like(mask), step

    quantized = int4.quantized
    case = Case()
    _, *exact = case.exact(16)
    monkeypatch.setattr(int4, "quantized", without)
    draws = zip(*(case.drawn("split", 16, step) for step in range(DRAWS)), strict=True)
    assert all(measure_bias(many, one).z > REJECTED for many, one in zip(draws, exact, strict=True))


def test_a_sample_costs_noise() -> None:
    half, whole, powers = (
        Case().biases(how, 16, share) for how, share in (("split", 0.5), ("split", 1.0), ("logarithmic", 1.0))
    )
    for sampled, full, logarithmic in zip(half, whole, powers, strict=True):
        assert full.error < 0.5 * sampled.error
        assert full.error < 0.5 * logarithmic.error


def test_half_of_the_rows_are_multiplied() -> None:
    case = Case(tokens=512)
    given = rows.split_rows(case.dy, torch.rand(case.dy.numel()))
    assert len(given.codes) == 1024
    index, weights = rows.sampled(given.codes, given.weights, 0.5, torch.rand)
    assert len(index) % 32 == 0
    assert 512 - 5 * 512**0.5 < int((weights > 0).sum()) < 512 + 5 * 512**0.5


def test_a_draw_is_a_function_of_its_key() -> None:
    case = Case()
    first, again, other = (case.drawn("split", 16, step) for step in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("how", ["split", "logarithmic"])
def test_no_gradient_gives_none_and_what_is_not_finite_stays_visible(how: str) -> None:
    case = Case()
    case.dy.zero_()
    assert not any(bool(gradient.any()) for gradient in case.drawn(how, 16, 0))
    case.dy[3, 2] = torch.inf
    assert not any(bool(gradient.isfinite().any()) for gradient in case.drawn(how, 16, 0))
