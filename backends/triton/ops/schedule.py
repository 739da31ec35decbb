"""Which configuration an op's kernel is compiled with: the fastest that was measured on its device.

    problem  -->  rows of the user's database and of the package  -->  one of the problem's space

and where there are none, the tables' row.

What an op computes does not depend on it: all configurations of a space add in the same order. Rows are read
at the first launch on a device, once for this process.
"""

import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning.problem import Problem

if TYPE_CHECKING:  # families ask ops for their numbers: at run time this module is the lower one
    from qcompiler.backends.triton.tuning.schedules import Schedules
    from qcompiler.tune.database import Core, Row

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The schedules of a device, and what they said of a problem: a launch does not ask twice."""

    schedules: "Schedules"
    found: dict[Problem, Configuration] = field(default_factory=dict)


def scheduled(problem: Problem, device: torch.device, default: Configuration) -> Configuration:
    """The fastest that was measured; the default, with a warning once for each problem, where nothing was."""
    known = of_device(device)
    if problem not in known.found:
        known.found[problem] = known.schedules.configuration(problem, default)
    return known.found[problem]


@cache
def of_device(device: torch.device) -> Chosen:
    from qcompiler.backends.triton.tuning.device import device_of
    from qcompiler.backends.triton.tuning.schedules import schedules_of

    its = device_of(device)
    return Chosen(schedules=schedules_of(rows(its.core), its.core, its.capability))


def rows(core: "Core") -> "list[Row]":
    """Those of the user's database, left out with a warning if it cannot be read, and those shipped."""
    from qcompiler.backends.triton.tuning.shipped import shipped
    from qcompiler.errors import TuningError
    from qcompiler.tune.database import default_path, read_rows

    found: list[Row] = []
    try:
        found = read_rows(default_path(), core)
    except TuningError as error:
        warnings.warn(f"{error}; meanwhile kernels run as is shipped and as the tables say", stacklevel=2)
    return [*found, *shipped(core)]


def of_rows(op: str, scheme: str, x: Tensor) -> Problem:
    """Of an op on rows of floats."""
    return Problem(op=op, scheme=scheme, M=x.shape[0], N=0, K=x.shape[1], out=named(x.dtype))


def named(dtype: torch.dtype) -> str:
    """As in problems: bf16 for bfloat16."""
    return NAMES.get(dtype, str(dtype).removeprefix("torch."))
