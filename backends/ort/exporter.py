"""What torch's exporter does again at every export, left out: most of what a small model takes.

its own translations: the source of a thousand functions is parsed          read once for each opset
the graph is traced again, op by op, to take apart what has no translation  only where an op has none
"""

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import torch
from torch.onnx._internal.exporter import _fx_passes, _registration

held: dict[tuple[Any, ...], Any] = {}  # arguments -> the registry that torch made of them
turn = threading.RLock()  # the exporter's functions are everybody's


@contextmanager
def shortened() -> Iterator[None]:
    """Within, torch exports the same model in less time.

    A torch that has no such functions exports as it would.
    """
    with turn, ExitStack() as stack:
        registry = getattr(_registration, "ONNXRegistry", None)
        if registry is not None and "from_torchlib" in vars(registry):
            stack.enter_context(replaced(registry, "from_torchlib", read_once))
        if hasattr(_fx_passes, "decompose_with_registry"):
            stack.enter_context(replaced(_fx_passes, "decompose_with_registry", taken_apart_if_needed))
        yield


@contextmanager
def replaced(owner: Any, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, by(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def read_once(original: Any) -> Any:
    """A registry is a copy of one that was read before; what is added to it no other has."""

    def from_torchlib(cls: type, *args: Any, **given: Any) -> Any:
        key = (cls, args, tuple(sorted(given.items())))
        if key not in held:
            held[key] = original.__get__(None, cls)(*args, **given)
        fresh = copy(held[key])
        fresh.functions = {target: list(found) for target, found in held[key].functions.items()}
        return fresh

    return classmethod(from_torchlib)


def taken_apart_if_needed(original: Any) -> Any:
    """A program whose ops all have translations stays as it is."""

    def decompose_with_registry(program: Any, registry: Any) -> Any:
        called = {node.target for node in program.graph.nodes if node.op == "call_function"}
        known = {*registry.functions, operator.getitem}
        return program if {key_of(target) for target in called} <= known else original(program, registry)

    return decompose_with_registry


def key_of(target: Any) -> Any:
    """Under what a registry has an op."""
    return str(target.name()) if isinstance(target, torch._ops.OpOverload) else target  # type: ignore[no-untyped-call]
