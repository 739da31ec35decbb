"""What torch's exporter does again at every export, left out: most of what a small model takes.

    its own translations: the source of a thousand functions is parsed          read once for each opset
    the graph is traced again, op by op, to take apart what has no translation  only where an op has none

The functions that do it are torch's own business. Where they are others than those known here, an export
takes as long as torch takes.
"""

import importlib
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import torch
from torch import fx

EXPORTER = "torch.onnx._internal.exporter"
held: dict[
    tuple[Any, ...], tuple[int, Any]
] = {}  # arguments -> the registry that torch made, of how many ops
turn = threading.RLock()  # one export of ours at a time


@contextmanager
def shortened() -> Iterator[None]:
    """Within, this thread exports the same model in less time; other threads export as torch does."""
    places = (("_registration", "ONNXRegistry", "from_torchlib", read_once),
              ("_fx_passes", None, "decompose_with_registry", taken_apart_if_needed))  # fmt: skip
    with turn, ExitStack() as stack:
        for module, kind, name, by in places:
            owner = found(module, kind)
            if owner is not None and name in vars(owner):
                stack.enter_context(replaced(owner, name, by))
        yield


def found(module: str, kind: str | None) -> Any:
    """A module of the exporter or a class in it, or None where this torch has none."""
    try:
        there = importlib.import_module(f"{EXPORTER}.{module}")
    except ImportError:
        return None
    return getattr(there, kind, None) if kind else there


@contextmanager
def replaced(owner: Any, name: str, by: Callable[[Any, Callable[[], bool]], Any]) -> Iterator[None]:
    """By what knows the original, and whether it is this thread that calls it."""
    original, mine = vars(owner)[name], threading.get_ident()
    setattr(owner, name, by(original, lambda: threading.get_ident() == mine))
    try:
        yield
    finally:
        setattr(owner, name, original)


def read_once(original: Any, is_ours: Callable[[], bool]) -> Any:
    """A registry is a copy of one that was read before; what is added to it no other has.

    It has translations of ops that torch knows: where a library came with more, it is read again.
    """

    def from_torchlib(cls: type, *args: Any, **given: Any) -> Any:
        read = original.__get__(None, cls)
        if not is_ours():
            return read(*args, **given)
        key, ops = (cls, args, tuple(sorted(given.items()))), len(torch._C._dispatch_get_all_op_names())
        if key not in held or held[key][0] != ops:
            held[key] = ops, read(*args, **given)
        known = getattr(held[key][1], "functions", None)
        if not isinstance(known, dict):
            return held.pop(key)[1]
        fresh = copy(held[key][1])
        fresh.functions = {target: list(ways) for target, ways in known.items()}
        return fresh

    return classmethod(from_torchlib)


def taken_apart_if_needed(original: Any, is_ours: Callable[[], bool]) -> Any:
    """A program whose ops all have translations stays as it is."""

    def decompose_with_registry(program: Any, registry: Any) -> Any:
        known = {*getattr(registry, "functions", ()), operator.getitem}
        stays = is_ours() and called(program.graph_module) <= known
        return program if stays else original(program, registry)

    return decompose_with_registry


def called(module: fx.GraphModule) -> set[Any]:
    """What a graph and those within it call, under the names that a registry has."""
    graphs = (part.graph for part in module.modules() if isinstance(part, fx.GraphModule))
    return {key_of(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}


def key_of(target: Any) -> Any:
    return str(target.name()) if isinstance(target, torch._ops.OpOverload) else target  # type: ignore[no-untyped-call]
