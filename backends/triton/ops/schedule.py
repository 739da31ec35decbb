"""Which configuration an op's kernel is compiled with: the fastest that was measured on its device.

    problem  -->  rows of the user's database and of the package  -->  one of the problem's space

and where there are none, the tables' row.

What an op computes does not depend on it: all configurations of a space add in the same order. FP8 products
alone are summed in as many parts as a configuration says, all within the bound of `tuning.gate`. Rows are
read at the first launch on a device, once for this process and each database: that of `reading`, else that of
`default_path`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning.problem import Problem, command
from qcompiler.errors import TargetError
from qcompiler.warn import warn

if TYPE_CHECKING:  # families ask ops for their numbers: at run time this module is the lower one
    from qcompiler.backends.triton.tuning.schedules import Schedules
    from qcompiler.tune.database import Core, Row

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
WRONG = "it ran wrong: "  # how reasons begin of what the compiler took, and the device did not
MORE = 64  # trials; the tuner has fewer by itself
LACKING = "nothing was measured on this device, so it runs as the tables say"
DATABASE: ContextVar[Path | None] = ContextVar("the database that ops read", default=None)


class NotMeasured(UserWarning):
    """A kernel runs as the tables say, since nothing says how it would be the fastest."""


@contextmanager
def reading(path: Path | None) -> Iterator[None]:
    """Ops that are called inside run as the rows of this file say; None is that of `default_path`."""
    held = DATABASE.set(path)
    try:
        yield
    finally:
        DATABASE.reset(held)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The schedules of a device, and what they said of a problem: a launch does not ask twice.

    database: the file that was named, if one was. missed: what was said to lack rows, without its M, or to
    have had all of them refused.
    """

    schedules: "Schedules"
    database: Path | None = None
    found: dict[Problem, Configuration] = field(default_factory=dict)
    missed: set[Problem] = field(default_factory=set)

    def configuration(self, problem: Problem, default: Configuration) -> Configuration:
        """The fastest that was measured; the default, with a warning once for all M, where nothing was.

        TargetError where the default was tried on this device, and did not give the right numbers.
        """
        found = self.schedules.configuration(problem)
        if found is not None:
            return found
        refused = self.schedules.refusals(problem)
        if refused and refused[0].reason.startswith(WRONG):
            raise TargetError(
                f"{problem.bucketed.text} cannot run on this device", why=hopeless(refused),
                fix=f"keep the layer in float by an override, or try more: {more(problem, self.database)}",
            )  # fmt: skip
        kind = problem.bucketed if refused else replace(problem, M=0)
        if kind not in self.missed:
            self.missed.add(kind)
            lack = remedy(problem, self.database)
            if refused:
                others = more(problem, self.database)
                lack = f"{hopeless(refused)}, so it runs as the tables say; {others} tries others"
            warn(f"{problem.bucketed.text}: {lack}", NotMeasured)
        return default


def scheduled(problem: Problem, device: torch.device, default: Configuration) -> Configuration:
    """What an op runs with: see `Chosen.configuration`."""
    known = of_device(device, DATABASE.get())
    if problem not in known.found:
        known.found[problem] = known.configuration(problem, default)
    return known.found[problem]


def hopeless(refused: "Sequence[Row]") -> str:
    """Why none of the candidates that were measured can be taken."""
    why = refused[0].reason or "nobody wrote why"
    tried = f"all {len(refused)} candidates that were tried on this device"
    return f"{tried} were refused, the first because '{why}'"


def more(problem: Problem, database: Path | None) -> str:
    """What tries candidates that were not tried."""
    return f"`{command(problem.bucketed, database)} --trials {MORE}`"


def remedy(problem: Problem, database: Path | None) -> str:
    """What to do where nothing was measured."""
    if problem.out not in NAMES.values():
        return f"{LACKING}; nothing tunes {problem.out}"
    its = command(problem.bucketed, database)
    return f"{LACKING}; `{its}` measures it, and with --rows other numbers of rows"


@cache
def of_device(device: torch.device, database: Path | None = None) -> Chosen:
    from qcompiler.backends.triton.tuning.device import device_of
    from qcompiler.backends.triton.tuning.schedules import schedules_of

    its = device_of(device)
    found = schedules_of(rows(its.core, database), its.core, its.capability)
    return Chosen(schedules=found, database=database)


def rows(core: "Core", database: Path | None = None) -> "list[Row]":
    """Those of the database, left out with a warning if it cannot be read, and those shipped."""
    from qcompiler.backends.triton.tuning.shipped import shipped
    from qcompiler.errors import TuningError
    from qcompiler.tune.database import default_path, read_rows

    found: list[Row] = []
    try:
        found = read_rows(database or default_path(), core)
    except TuningError as error:
        warn(f"{error}; meanwhile kernels run as is shipped and as the tables say")
    return [*found, *shipped(core)]


def of_rows(op: str, scheme: str, x: Tensor) -> Problem:
    """Of an op on rows of floats."""
    return Problem(op=op, scheme=scheme, M=x.shape[0], N=0, K=x.shape[1], out=named(x.dtype))


def named(dtype: torch.dtype) -> str:
    """As in problems: bf16 for bfloat16."""
    return NAMES.get(dtype, str(dtype).removeprefix("torch."))
