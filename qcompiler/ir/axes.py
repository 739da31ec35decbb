"""Which sizes of inputs stay symbolic: the batch where a model allows it, and axes that the caller names.

The exporter is given marks, axis -> Dim, in the structure of a call, and freezes what the model fixes.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError, TraceError
from qcompiler.ir.spec import spec

Axes = Mapping[str, Sequence[int]]


def widen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Repeat a batch of one (the exporter would freeze size 1) and mark batch dimensions as dynamic."""
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
    if not leaves:
        return args, kwargs, None
    batch = leaves[0].shape[0]

    def is_batched(x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch

    def widened(x: Any) -> Any:
        return torch.cat([x, x]) if is_batched(x) and batch == 1 else x

    dynamic = pytree.tree_map(lambda x: {0: Dim.AUTO} if is_batched(x) else None, (args, kwargs))
    wide_args, wide_kwargs = pytree.tree_map(widened, (args, kwargs))
    return wide_args, wide_kwargs, dynamic


def arrange(dynamic: Any, model: nn.Module) -> dict[str, Any]:
    """The marks by the names of the parameters, which is how torch.export binds a call."""
    args, kwargs = dynamic
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def is_mark(found: Any) -> bool:
    """A leaf among the marks: None, or axis -> Dim."""
    return found is None or (isinstance(found, dict) and all(isinstance(key, int) for key in found))


def check_axes(name: str, wanted: Sequence[int], given: Mapping[str, Any]) -> None:
    """Only an axis of at least 2 can be traced as any size: the exporter takes 1 for a broadcast."""
    if name not in given:
        raise InputError(
            f"there is no input '{name}' to be dynamic", why=f"the model takes {', '.join(given)}",
            fix="correct the name",
        )  # fmt: skip
    for x in pytree.tree_leaves(given[name]):
        short = isinstance(x, Tensor) and any(axis >= x.dim() or x.shape[axis] < 2 for axis in wanted)
        if not isinstance(x, Tensor) or short:
            shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"axes {list(wanted)} of input '{name}' cannot be dynamic", why=f"the example has {shape}",
                fix="give an example with at least 2 there",
            )  # fmt: skip


def check_symbolic(program: ExportedProgram, axes: Axes) -> None:
    """Refuse a model that fixes an axis that was asked to be free; the exporter does so without a word."""
    for node in user_inputs(program):
        found = spec(node)
        wanted = next(
            (axes[name] for name in axes if node.name == name or node.name.startswith(f"{name}_")), ()
        )
        for axis in wanted:
            size = found.shape[axis] if found else 0
            if isinstance(size, int):
                raise TraceError(
                    f"axis {axis} of input '{node.name}' cannot be dynamic",
                    why=f"the model fixes its size to {size}",
                    fix="leave it out, or let the model take its size from the input",
                )


def has_symbolic_batch(program: ExportedProgram) -> bool:
    return any(
        found and found.shape and not isinstance(found.shape[0], int)
        for found in map(spec, user_inputs(program))
    )


def admits(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the example itself fits; a model that fixes its batch size has taken on the widened one."""
    specs = map(spec, user_inputs(program))
    return all(
        not isinstance(wanted, int) or wanted == have
        for found, given in zip(specs, pytree.tree_leaves((args, kwargs)), strict=False)
        if found is not None and isinstance(given, Tensor)
        for wanted, have in zip(found.shape, given.shape, strict=True)
    )


def user_inputs(program: ExportedProgram) -> list[Node]:
    users = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
