"""qcompiler itself."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import qcompiler as qc
from benchmarks.case import Case
from benchmarks.peers.base import Bind, threads


@dataclass(frozen=True, kw_only=True)
class Compile:
    """`qc.compile` with a recipe, for a backend; the speed guard is on, as it is for everybody."""

    recipe: str
    backend: str = "ort"

    def prepare(self, case: Case, folder: Path) -> Path | None:
        data = case.data()
        example, artifact = data.calibration[0], folder / "model.qc"
        compiled = qc.compile(
            case.module(),
            example,
            calibration=data.calibration,
            recipe=self.recipe,
            backend=self.backend,
            threads=1,
            progress=False,
        )
        compiled.save(artifact)
        return artifact

    def open(self, case: Case, folder: Path) -> Bind:
        compiled = qc.load(folder / "model.qc", threads=threads())
        return lambda inputs: partial(called, compiled, inputs)


def called(compiled: qc.Compiled, inputs: tuple[object, ...]) -> object:
    return compiled(*inputs)
