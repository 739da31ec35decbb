"""Backends: how a quantized graph is executed. Heavy packages are imported at first use.

A new backend is a folder beside the others with a class that has the form of `base.Backend`, and a row here.
"""

from importlib import import_module

from qcompiler.backends.base import Backend
from qcompiler.errors import LoweringError
from qcompiler.target import Target

# Name -> module and class; the class is made with the target.
BACKENDS = {
    "ort": ("qcompiler.backends.ort", "Ort"),
    "tvm": ("qcompiler.backends.tvm", "Tvm"),
    "reference": ("qcompiler.backends.reference", "Reference"),
}
AUTO = "auto"


def find_backend(name: str, target: Target) -> Backend:
    """The backend of that name; "auto" is the target's own."""
    chosen = target.backend if name == AUTO else name
    if chosen not in BACKENDS:
        raise LoweringError(
            f"there is no backend '{name}'",
            why=f"known are {', '.join([AUTO, *BACKENDS])}",
            fix="choose one of these",
        )
    module, member = BACKENDS[chosen]
    backend: Backend = getattr(import_module(module), member)(target)
    return backend
