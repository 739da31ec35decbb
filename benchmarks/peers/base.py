"""What a peer is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from benchmarks.case import Case
from qcompiler.models.bundle import Inputs

Bind: TypeAlias = "Callable[[Inputs], Callable[[], Any]]"
"""inputs -> the call on them; converting them is not timed.

A result is what is judged, or a sequence that begins with it.
"""


class Peer(Protocol):
    """A way of running a model; a frozen dataclass whose fields are its settings."""

    def prepare(self, case: Case, folder: Path) -> Path | None:
        """Do once what can be kept on disk; returns the file or folder that would be shipped, if any."""
        ...

    def open(self, case: Case, folder: Path) -> Bind:
        """Make ready to run, in a process of its own, on one thread."""
        ...
