"""Backends: how a quantized graph is executed. Heavy packages are imported at first use.

A new backend is a folder beside the others with a class that has the form of `base.Backend`, and a row here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.errors import InputError, LoweringError

if TYPE_CHECKING:  # what lies beside this is imported through it, and kernels want little beside torch
    from qcompiler.backends.base import Backend
    from qcompiler.target import Target

# Name -> module and class; the class is made with the target.
BACKENDS = {
    "ort": ("qcompiler.backends.ort", "Ort"),
    "tvm": ("qcompiler.backends.tvm", "Tvm"),
    "triton": ("qcompiler.backends.triton.engine.backend", "Triton"),
    "reference": ("qcompiler.backends.reference", "Reference"),
}
AUTO = "auto"
TUNED = ("tvm", "triton")  # those that read measured schedules from a database


def find_backend(name: str, target: Target, *, database: str | Path | None = None) -> Backend:
    """The backend of that name; "auto" is the target's own. `database` is for those that read one."""
    chosen = target.backend if name == AUTO else name
    if chosen not in BACKENDS:
        raise LoweringError(
            f"there is no backend '{name}'", fix=f"choose one of {', '.join([AUTO, *BACKENDS])}"
        )
    if database is not None and chosen not in TUNED:
        raise InputError(
            f"backend '{chosen}' reads no database of schedules",
            fix=f"leave it out, or use {' or '.join(TUNED)}",
        )
    module, member = BACKENDS[chosen]
    options = {} if database is None else {"database": Path(database)}
    backend: Backend = getattr(import_module(module), member)(target, **options)
    return backend


def check_threads(threads: int | None) -> None:
    """Raise InputError for a number of threads that no engine can have."""
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}", fix="give a number from 1 on, or None for all cores")
