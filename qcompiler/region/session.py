"""The backend of torch.compile: captures regions, shares them between captures of the same code, reports.

torch.compile(model, backend="qcompiler", options={"recipe": "int8", "calibrate": 8})
torch.compile(model, backend=Regions(recipe="int8", calibrate=8))        the same, with the regions in hand
"""

import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from qcompiler.backends import AUTO, check_threads, find_backend
from qcompiler.errors import InputError
from qcompiler.recipe import Recipe, find_recipe
from qcompiler.region.build import Settings
from qcompiler.region.capture import GRADIENTS, Break, Capture
from qcompiler.region.region import Region
from qcompiler.report import Report
from qcompiler.target import Target, find_target

CALIBRATE = 8  # calls in float before a region is compiled: ranges of a few batches are near those of many


class Regions:
    """All regions of a model; called by torch.compile with each piece of graph that it captures.

    calibrate: so many calls of each region run in float and are kept (their inputs, no more) to calibrate on.
    guard: a part that is not faster than float goes back to it; only a study of numbers turns this off.
    waits: compile nothing before `settle` is called.
    """

    def __init__(
        self,
        *,
        recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
        calibrate: int = CALIBRATE,
        target: str | Target = "cpu",
        backend: str = AUTO,
        threads: int | None = None,
        guard: bool = True,
        seed: int = 0,
        waits: bool = False,
        options: Any = None,
    ) -> None:
        if not isinstance(calibrate, int) or calibrate < 1:
            raise InputError(
                f"calibrate is {calibrate!r}", why="ranges come from calls", fix="give a number from 1 on"
            )
        check_threads(threads)
        aim = find_target(target)
        self.settings = Settings(
            recipe=find_recipe(recipe), target=aim, backend=find_backend(backend, aim), threads=threads,
            guard=guard, seed=seed,
        )  # fmt: skip
        self.calibrate, self.waits = calibrate, waits
        self.options = (
            options  # kept alive: torch.compile's own object, by which `backend` knows this session
        )
        self.regions: list[Region] = []
        self.breaks: Counter[Break] = Counter()
        self.by_key: dict[Any, Region] = {}
        self.lock = threading.Lock()
        self.has_warned = False

    def __call__(
        self, module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Any = None
    ) -> Callable[..., Any]:
        """What torch.compile runs for this graph from now on."""
        capture = Capture.of(module, example_inputs)
        with self.lock:
            if capture.ended is not None:
                self.breaks[capture.ended] += 1
            region = self.by_key.get(capture.key)
            if region is None or not region.takes(capture, example_inputs):
                region = Region(capture, self.settings, self.calibrate, waits=self.waits)
                self.regions.append(region)
                self.by_key[capture.key] = region
        region.widen(capture)

        return partial(self.run, region, capture)

    def run(self, region: Region, capture: Capture, *given: Any) -> Any:
        if torch.is_grad_enabled() and not self.has_warned and capture.obstacle(given) == GRADIENTS:
            self.has_warned = True
            warnings.warn(
                "regions run in float while gradients are recorded: call the model under torch.no_grad(), or "
                'say, to train it in few bits, what is kept for backward: options={"memory": "act4", ...}',
                stacklevel=2,
            )
        return region(capture, given)

    def settle(self) -> None:
        """Compile every region that has been called, on what was recorded so far."""
        for region in list(self.regions):
            region.settle()

    @property
    def is_timed(self) -> bool:
        """Whether the backend is meant to be fast: the speed guard raced some part of it."""
        return any(
            (compiled.data["speed"] or {}).get("rounds")
            for region in self.regions
            if region.built
            for compiled in region.built.compiled
        )

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether some region has this weight."""
        return any(
            tensor is weight.tensor for region in self.regions for weight in region.capture.weights.values()
        )

    def report(self, model: nn.Module | None = None) -> Report:
        """What each region became; with the model, also which layers no region holds."""
        from qcompiler.region.facts import facts

        return Report(data=facts(self, model))


SESSIONS: "weakref.WeakValueDictionary[int, Regions]" = weakref.WeakValueDictionary()
OPTIONS = ("recipe", "calibrate", "target", "backend", "threads", "guard", "seed")


def backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The function that stands for "qcompiler" in torch.compile; options as those of `Regions`."""
    unknown = sorted({*(options or {})} - {*OPTIONS})
    if unknown:
        raise InputError(f"there is no option '{unknown[0]}'", fix=f"use {', '.join(OPTIONS)}")
    # torch.compile keeps one mapping per call of it and so do we: no other lives at that address meanwhile.
    session = SESSIONS.get(id(options))
    if session is None:
        session = Regions(**(options or {}), options=options)
        SESSIONS[id(options)] = session
    return session(module, example_inputs)


def region_report(model: nn.Module) -> Report:
    """What became of a model that was compiled by `torch.compile(model, backend="qcompiler")`.

    Raises InputError where no region has been captured yet.
    """
    own = [*model.parameters(), *model.buffers()]
    for session in list(SESSIONS.values()):
        if any(map(session.holds, own)):
            return session.report(model)
    raise InputError(
        f"no region of this {type(model).__name__} has been captured",
        why="a region is captured when the compiled model is called",
        fix="call it on real inputs first; a Regions object passed as backend has its own report()",
    )
