"""The gradient of an operator that a torch function defines: that function's own, computed anew."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def recomputed(op: Any, function: Callable[..., Tensor]) -> None:
    """Register d op(x, ...) = d function(x, ...) for an op with one result; it keeps its inputs alone."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(given for given in inputs if isinstance(given, Tensor)))
        ctx.literals = [None if isinstance(given, Tensor) else (given,) for given in inputs]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter([x.detach().requires_grad_(x.is_floating_point()) for x in ctx.saved_tensors])
        inputs = [next(tensors) if literal is None else literal[0] for literal in ctx.literals]
        with torch.enable_grad():
            result = function(*inputs)
        learned = [isinstance(given, Tensor) and given.requires_grad for given in inputs]
        sources = [given for given, wanted in zip(inputs, learned, strict=True) if wanted]
        found = iter(torch.autograd.grad(result, sources, gradient, allow_unused=True))
        return tuple(next(found) if wanted else None for wanted in learned)

    op.register_autograd(backward, setup_context=setup_context)
