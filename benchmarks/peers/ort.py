"""ONNX Runtime on the exported file: the baseline."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.case import Case, leaves
from benchmarks.peers.base import Bind, threads
from qcompiler.backends.ort.session import Settings, open_session
from qcompiler.models.bundle import Inputs

# As anybody gets them: every optimization on, also those that our own backend turns off.
STOCK = Settings(disabled=())


def opened(path: Path) -> Bind:
    """A session of any ONNX file, fed with arrays."""
    session = open_session(path, replace(STOCK, threads=threads()))
    names = [given.name for given in session.get_inputs()]

    def bind(inputs: Inputs) -> Callable[[], Any]:
        feed = dict(zip(names, (x.numpy() for x in leaves(inputs)), strict=True))
        return partial(session.run, None, feed)

    return bind


@dataclass(frozen=True, kw_only=True)
class Float:
    def prepare(self, case: Case, folder: Path) -> Path | None:
        return case.onnx

    def open(self, case: Case, folder: Path) -> Bind:
        return opened(case.onnx)
