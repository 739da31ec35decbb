"""Backends: how a quantized graph is executed. Heavy packages are imported at first use.

A new backend is a folder beside the others with a class that has the form of `base.Backend`, and a row here.
"""

from importlib import import_module

from qcompiler.backends.base import Backend
from qcompiler.errors import InputError, LoweringError
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
            f"there is no backend '{name}'", fix=f"choose one of {', '.join([AUTO, *BACKENDS])}"
        )
    module, member = BACKENDS[chosen]
    backend: Backend = getattr(import_module(module), member)(target)
    return backend


def check_threads(threads: int | None) -> None:
    """Raise InputError for a number of threads that no engine can have."""
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}", fix="give a number from 1 on, or None for all cores")
