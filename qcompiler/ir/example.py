"""Example inputs: one call of a model, which it has to take, and whose result a graph can return."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError, TraceError
from qcompiler.ir.failure import first_line, user_position

# Where a library registers its own result types with torch.export, which it does on demand.
REGISTERED_BY = {
    "transformers.cache_utils": (
        "transformers.integrations.executorch", "register_dynamic_cache_export_support"
    ),
}  # fmt: skip


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One batch as `(args, kwargs)`: a tensor, a tuple or list of arguments, or a dict of keywords."""
    match example_inputs:
        case Tensor():
            return (example_inputs,), {}
        case Mapping():
            return (), dict(example_inputs)
        case tuple() | list():
            return tuple(example_inputs), {}
    raise InputError(
        f"inputs are a {type(example_inputs).__name__}",
        why="a batch is a tensor, a tuple of tensors or a dict of tensors",
        fix="wrap them accordingly",
    )


def check_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a batch of no rows: nothing can be seen or timed on it."""
    first = next((x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()), None)
    if first is not None and not first.shape[0]:
        raise InputError(
            f"the example inputs are an empty batch of shape {list(first.shape)}", fix="give at least one row"
        )


def check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's own result; refuses example inputs on which it fails."""
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        shapes = [list(x.shape) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        raise InputError(
            f"the model fails on the example inputs of shape {', '.join(map(str, shapes))}",
            node=user_position(error),
            why=first_line(error),
            fix="pass inputs that the model itself accepts",
        ) from error


def register_types(result: Any, model: nn.Module) -> None:
    """Have every type in a result known to torch.export, or refuse the one that cannot be."""
    for leaf in pytree.tree_leaves(result):
        if leaf is None or isinstance(leaf, Tensor | int | float | str):
            continue
        known = REGISTERED_BY.get(type(leaf).__module__)
        if known is not None:
            getattr(importlib.import_module(known[0]), known[1])()
        if pytree.tree_leaves(leaf) == [leaf]:
            raise TraceError(
                f"{type(model).__name__} returns a {type(leaf).__name__}",
                why="a graph returns tensors, in containers that torch.utils._pytree knows",
                fix="return its tensors, or register the type with torch.utils._pytree.register_pytree_node",
            )
