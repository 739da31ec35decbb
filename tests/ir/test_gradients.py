"""The gradients of the operators that torch lacks, against finite differences."""

from __future__ import annotations

import torch

from qcompiler.ir.ops import global_avg_pool, space_to_depth


def test_a_mean_over_space_gives_its_gradient_to_all_of_it() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(global_avg_pool, x)


def test_patches_give_their_gradient_back_to_their_pixels() -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: space_to_depth(x, 2), x)
