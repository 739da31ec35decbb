"""What a peer is."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from benchmarks.case import Case
from qcompiler.models.bundle import Inputs

Bind: TypeAlias = "Callable[[Inputs], Callable[[], Any]]"
"""inputs -> the call on them; converting them is not timed.

A result is what is judged, or a sequence that begins with it.
"""


def threads() -> int:
    """As many as the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class Peer(Protocol):
    """A way of running a model; a frozen dataclass whose fields are its settings."""

    def prepare(self, case: Case, folder: Path) -> Path | None:
        """Do once what can be kept on disk; returns the file or folder that would be shipped, if any."""
        ...

    def open(self, case: Case, folder: Path) -> Bind:
        """Make ready to run, in a process of its own, on `threads()`."""
        ...
