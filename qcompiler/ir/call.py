"""A call of a model in the flat order of its graph, checked on the way.

model(*args, **kwargs)  -->  [x0, x1, ...] in the order of graph.inputs
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError
from qcompiler.ir.graph import Graph, Signature, Wanted
from qcompiler.ir.spec import TensorSpec


def flatten_inputs(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
    """Bring a call `model(*args, **kwargs)` into the graph's flat order, checking it on the way."""
    flat = flatten_call(graph.signature, args, dict(kwargs or {}))
    # Between two calls a large model has swept the processor's caches, so that every line here costs several
    # times what it costs in a loop: inputs of shapes that were good once are not looked at again.
    kinds = tuple([(x.shape, x.dtype) if isinstance(x, Tensor) else None for x in flat])
    if kinds not in graph.accepted or None in kinds:
        check(graph.wanted, flat)
        graph.accepted.add(kinds)
    return flat


def check(wanted: Sequence[Wanted], flat: Sequence[Any]) -> None:
    """Refuse inputs that are not what the graph was traced for."""
    for (name, found), given in zip(wanted, flat, strict=True):
        if found is not None:
            check_input(name, found, given)
    check_shared_sizes(wanted, flat)


def check_shared_sizes(wanted: Sequence[Wanted], flat: Sequence[Any]) -> None:
    """A symbolic size that several inputs share (the batch) must be one number in a call."""
    seen: dict[str, tuple[str, int]] = {}
    for (name, found), given in zip(wanted, flat, strict=True):
        for size, have in zip(found.shape if found else (), given.shape if found else (), strict=True):
            first = seen.setdefault(size, (name, have)) if isinstance(size, str) else None
            if first is not None and first[1] != have:
                raise InputError(
                    f"input '{name}' has {have} rows and '{first[0]}' has {first[1]}",
                    why="they share that dimension",
                    fix="pass inputs of one batch size",
                )


def flatten_call(signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    if not kwargs and signature.is_plain and len(args) == len(signature.inputs):
        return list(args)
    given = pytree.tree_leaves((args, kwargs))
    try:
        return list(signature.in_spec.flatten_up_to((args, kwargs)))  # dicts may have their keys in any order
    except ValueError:
        pass  # another arrangement; perhaps the same arguments by name
    # An argument that the example gave by name has no known position.
    positional = signature.in_spec.child(0).num_children
    named = dict(zip(signature.argument_names[:positional], args, strict=False)) | kwargs
    if len(args) + len(kwargs) == len(named) and set(named) == set(signature.argument_names):
        given = pytree.tree_leaves(tuple(named[name] for name in signature.argument_names))
        if len(given) == len(signature.inputs):
            return list(given)
    wanted = ", ".join(signature.argument_names or signature.inputs)
    raise InputError(
        f"the model takes {len(signature.inputs)} inputs ({wanted});"
        f" the call has {len(given)}, arranged otherwise",
        why="it was compiled for the arrangement of the example inputs",
        fix="call it with the same positional and keyword arguments as the example",
    )


def check_input(name: str, wanted: TensorSpec, given: Any) -> None:
    """Refuse a tensor of another rank, fixed size or dtype than the one traced."""
    if not isinstance(given, Tensor):
        raise InputError(
            f"input '{name}' is a {type(given).__name__}, not a tensor", fix=f"pass a tensor {wanted}"
        )
    fits = len(given.shape) == len(wanted.shape) and all(
        not isinstance(size, int) or size == have
        for size, have in zip(wanted.shape, given.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"input '{name}' has shape {list(given.shape)}",
            why=f"the graph was traced for {wanted}",
            fix="pass that shape, or trace again with an example of the new one",
        )
    if given.dtype != wanted.dtype:
        raise InputError(
            f"input '{name}' has dtype {given.dtype}",
            why=f"the graph was traced for {wanted}",
            fix=f"convert it with .to({wanted.dtype})",
        )
