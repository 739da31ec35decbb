"""The gradients of the operators that torch lacks, against finite differences."""

from __future__ import annotations

import torch

from qcompiler.ir.attention import attention, rotary
from qcompiler.ir.ops import global_avg_pool, space_to_depth


def test_a_mean_over_space_gives_its_gradient_to_all_of_it() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(global_avg_pool, x)


def test_patches_give_their_gradient_back_to_their_pixels() -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: space_to_depth(x, 2), x)


def test_attention_and_rotary_positions_have_the_gradients_of_their_functions() -> None:
    q, k, v = (torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.randn(3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, mask, 2, 2, 0.5, False), (q, k, v))
    cos, sin = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: rotary(*given, 2), (q, cos, sin))
