"""The exporter's own translations, read once for each opset instead of at every export.

torch parses the source of a thousand functions whenever it exports: half the time that a small model takes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from torch.onnx._internal.exporter import _registration

held: dict[tuple[Any, ...], Any] = {}  # arguments -> the registry that torch made of them
turn = threading.RLock()  # the exporter's classes are everybody's


@contextmanager
def read_once() -> Iterator[None]:
    """Within, torch's registry of translations is a copy of one that was read before.

    What others export meanwhile waits for nobody: they find the method as it was, or a copy like ours. On a
    torch whose exporter has no such method nothing changes, and exports take as long as torch takes.
    """
    kind = getattr(_registration, "ONNXRegistry", None)
    original = vars(kind).get("from_torchlib") if kind is not None else None
    if original is None:
        yield
        return

    def from_torchlib(cls: type, *args: Any, **given: Any) -> Any:
        key = (cls, args, tuple(sorted(given.items())))
        if key not in held:
            held[key] = original.__get__(None, cls)(*args, **given)
        fresh = copy(held[key])
        fresh.functions = {target: list(found) for target, found in held[key].functions.items()}
        return fresh

    with turn:
        kind.from_torchlib = classmethod(from_torchlib)
        try:
            yield
        finally:
            kind.from_torchlib = original
