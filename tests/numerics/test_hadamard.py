"""The Hadamard transform: an orthogonal involution that leaves a product alone and tames outliers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.numerics import best_block, hadamard, transform
from qcompiler.numerics.hadamard import BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_the_matrix_is_symmetric_and_its_own_inverse(block: int) -> None:
    h = hadamard(block)
    assert torch.equal(h, h.T)
    assert (h @ h - torch.eye(block)).abs().max() < 1e-12
    assert (h.abs() - block**-0.5).abs().max() <= 2**-53  # a unit in the last place of 0.7


@pytest.mark.parametrize("block", BLOCKS)
def test_the_transform_is_the_product_with_the_matrix(block: int) -> None:
    x = torch.randn(2, 3, 2048, dtype=torch.float64)
    wanted = (x.reshape(-1, block) @ hadamard(block)).reshape(x.shape)
    assert (transform(x, block) - wanted).abs().max() < 1e-12
    assert (transform(transform(x, block), block) - x).abs().max() < 1e-12


@pytest.mark.parametrize("block", BLOCKS)
def test_a_product_of_two_transformed_matrices_is_the_product(block: int) -> None:
    x, w = torch.randn(5, 1024, dtype=torch.float64), torch.randn(7, 1024, dtype=torch.float64)
    assert (transform(x, block) @ transform(w, block).T - x @ w.T).abs().max() < 1e-12 * 1024


def test_an_outlier_becomes_equal_parts_of_its_block() -> None:
    outlier = torch.zeros(3, 64, dtype=torch.float64)
    outlier[1, 37] = 1
    spread = transform(outlier, 32)
    assert (spread[1, 32:].abs() - 2**-2.5).abs().max() < 1e-16
    assert not spread[1, :32].any() and not spread[[0, 2]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_types_are_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(4, 128).to(dtype)
    wanted = transform(x.double(), 64)
    found = transform(x, 64)
    assert found.dtype == dtype
    # half a unit of the type, and some of float32 from 64 terms of standard deviation 1/8
    assert bool(((found.double() - wanted).abs() <= torch.finfo(dtype).eps / 2 * wanted.abs() + 2e-6).all())


def mse_best(y: Tensor) -> Tensor:
    """4 bits at the best of a few steps per tensor: what a learned step comes to."""
    steps = [y.abs().max() / 7 * f for f in (1, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05, 0.03)]
    rounded = [(y / step).round().clamp(-7, 7) * step for step in steps]
    return min(rounded, key=lambda r: float((r - y).square().sum()))


@pytest.fixture(scope="module")
def outliers() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, w = torch.randn(512, 768), torch.randn(768, 768) / 768**0.5
    x[:, torch.randperm(768)[:8]] *= 30
    return x, w


def matmul_error(x: Tensor, w: Tensor, block: int) -> float:
    y = x @ w.T
    found = mse_best(transform(x, block)) @ mse_best(transform(w, block)).T
    return float((found - y).norm() / y.norm())


def test_outliers_cost_less_behind_larger_blocks(outliers: tuple[Tensor, Tensor]) -> None:
    none, middle, large = (matmul_error(*outliers, block) for block in (1, 32, 256))
    assert middle < 0.8 * none
    assert large < 0.8 * middle


def test_the_best_block_is_that_of_least_error(outliers: tuple[Tensor, Tensor]) -> None:
    x, w = outliers
    assert best_block(x, w, mse_best) == 256  # the largest that divides 768
    assert best_block(x, w, mse_best, blocks=(1, 16, 32)) == 32
    assert best_block(x[:, :600], w[:, :600]) in (1, 2, 4, 8)  # of the others none divides 600
    assert best_block(x, w, lambda y: y) == 1  # without an error nothing is gained


def test_the_default_rounding_finds_a_block_that_pays(outliers: tuple[Tensor, Tensor]) -> None:
    x, w = outliers
    assert best_block(x, w) >= 32


@pytest.mark.parametrize(("width", "block"), [(64, 3), (64, 0), (64, 2048), (96, 64)])
def test_what_is_no_block_is_refused(width: int, block: int) -> None:
    with pytest.raises(InputError):
        transform(torch.ones(2, width), block)


def test_operands_without_a_product_are_refused() -> None:
    with pytest.raises(InputError):
        best_block(torch.ones(2, 8), torch.ones(2, 16))
