"""Models that train, and batches for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qcompiler.models import build

WIDTH, TOKENS = 768, 128  # of the transformer block


def subject(name: str, rows: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model whose parameters all train and whose statistics do not move, and a batch of so many rows."""
    torch.manual_seed(0)
    if name == "block":
        model: nn.Module = block(WIDTH)
        inputs: tuple[Any, ...] = (torch.randn(rows, TOKENS, WIDTH),)
    else:
        bundle = build(name)
        model, inputs = bundle.module, batch(bundle.example_inputs, rows)
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_()
    for module in model.modules():  # statistics that move would make every step another
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model, inputs


def block(width: int) -> nn.Module:
    """A pre-norm transformer block without dropout."""
    return nn.TransformerEncoderLayer(
        width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def batch(inputs: Sequence[Any], rows: int) -> tuple[Any, ...]:
    """The example inputs over and over, each row turned a little."""

    def widened(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        wide = x.repeat(rows, *[1] * (x.dim() - 1))
        return wide + 0.1 * torch.randn_like(wide) if wide.is_floating_point() else wide

    wide: tuple[Any, ...] = pytree.tree_map(widened, tuple(inputs))
    return wide
