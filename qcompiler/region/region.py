"""A region's life: float while it is being recorded, then compiled once, then integers where they apply.

recording --N calls--> compiling --built--> compiled
                                 --error--> torch
"""

import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompiler.errors import EngineError, InputError
from qcompiler.ir.failure import first_line
from qcompiler.ir.quiet import quiet
from qcompiler.ir.spec import source_line
from qcompiler.region.build import Built, Piece, Settings, build
from qcompiler.region.capture import Capture

# What became of a call, as it is counted.
CALIBRATING, COMPILED, SHAPES, FAILED = "calibrating", "compiled", "other shapes", "engine failed"


class Region:
    """One piece of the model, under whatever guards it was captured; safe to call from several threads."""

    def __init__(self, capture: Capture, settings: Settings, calibrate: int, *, waits: bool = False) -> None:
        self.capture = capture  # the widest one: its sizes are the ones that stay open
        self.settings = settings
        self.calibrate = calibrate  # records that are kept, at most
        self.waits = waits  # for `settle`, instead of compiling on the last record
        self.state = "recording"
        self.why = ""
        self.built: Built | None = None
        self.records: list[list[Any]] = []
        self.calls: Counter[str] = Counter()
        self.pieces: tuple[Piece, ...] = ()
        self.lock = threading.Lock()

    def __call__(self, capture: Capture, given: Sequence[Any]) -> Any:
        obstacle = capture.obstacle(given)
        if obstacle is not None:
            return self.in_torch(capture, given, obstacle)
        if self.built is not None:
            return self.in_integers(self.built, capture, given)
        if self.state == "torch":
            return self.in_torch(capture, given, "torch")
        return self.observed(capture, given)

    def in_torch(self, capture: Capture, given: Sequence[Any], because: str) -> Any:
        self.count(because)
        return capture.original(*given)

    def in_integers(self, built: Built, capture: Capture, given: Sequence[Any]) -> Any:
        try:
            with torch.no_grad():
                result = built.run(*(given[position] for position in capture.positions))
        except InputError:  # of other shapes than it was compiled for
            return self.in_torch(capture, given, SHAPES)
        except EngineError:  # it has no effects, so float starts anew
            return self.in_torch(capture, given, FAILED)
        self.count(COMPILED)
        return result

    def observed(self, capture: Capture, given: Sequence[Any]) -> Any:
        """A call in float that calibrates; an error of the model's own is the caller's, and not recorded."""
        record = []
        if self.state == "recording" and len(self.records) < self.calibrate:
            held = capture.weights
            record = [given[p] if p in held else copy(given[p]) for p in capture.positions]
        result = capture.original(*given)
        self.count(CALIBRATING)
        with self.lock:
            recording = self.state == "recording"
            if recording and record and len(self.records) < self.calibrate:
                self.records.append(record)
            due = recording and len(self.records) >= self.calibrate and not self.waits
            if due:
                self.state = "compiling"
        if due:
            self.compile()
        return result

    def settle(self) -> None:
        """Compile on what there is, if anything was recorded."""
        with self.lock:
            due = self.state == "recording" and bool(self.records)
            if due:
                self.state = "compiling"
        if due:
            self.compile()

    def compile(self) -> None:
        """Only the thread that set the state to "compiling" comes here; others go on in float meanwhile."""
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), quiet():
                built = build(self.capture.module, self.records, self.settings)
        except Exception as error:  # whatever went wrong, the float path works
            self.why, self.state = first_line(error), "torch"
            warnings.warn(f"a region stays in float, because {self.why}", stacklevel=2)
        else:
            self.why = "" if built.compiled else heaviest(built.pieces).why
            if built.compiled:
                self.built = built
            self.pieces = built.pieces
            self.state = "compiled" if built.compiled else "torch"
        finally:
            self.records = []

    def takes(self, capture: Capture, given: Sequence[Any]) -> bool:
        """Whether another capture of the same code may run by what this region has, or will have."""
        if self.built is None:
            return self.state == "recording"
        if capture.obstacle(given) is not None:
            return False
        try:
            with torch.no_grad():
                self.built.run(*(given[position] for position in capture.positions))
        except (InputError, EngineError):
            return False
        return True

    def widen(self, capture: Capture) -> None:
        """Go by the capture of the same code that leaves most sizes open."""
        with self.lock:
            if self.state == "recording" and capture.free_sizes > self.capture.free_sizes:
                self.capture = capture

    @property
    def nodes(self) -> int:
        return sum(node.op.startswith("call") for node in self.capture.original.graph.nodes)

    @property
    def source(self) -> str | None:
        """The first line of the user's code that is in it."""
        return next(filter(None, map(source_line, self.capture.original.graph.nodes)), None)

    def count(self, what: str) -> None:
        with self.lock:
            self.calls[what] += 1


def heaviest(pieces: Sequence[Piece]) -> Piece:
    """The part that counts; an island only if there is nothing else."""
    return max(pieces, key=lambda piece: (not piece.island, piece.microseconds))


def copy(given: Any) -> Any:
    """An input as it is now; a plain tensor, in whatever mode the caller runs."""
    if not isinstance(given, Tensor):
        return given
    with torch.inference_mode(False), torch.no_grad():
        return given.detach().clone()
