"""The order of candidates on paper, and how good it is against what was measured.

top k of a problem = seconds of the fastest of all / seconds of the fastest of the first k on paper
"""

import math
from collections.abc import Iterable, Iterator

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning.device import Device
from qcompiler.backends.triton.tuning.families import FAMILIES, family_of, space, written
from qcompiler.backends.triton.tuning.predict import predicted
from qcompiler.backends.triton.tuning.problem import Problem, parsed
from qcompiler.backends.triton.tuning.residual import Residual, Sample, learnt
from qcompiler.tune.database import Row

Timed = dict[Problem, dict[str, tuple[Configuration, float]]]


def timed(rows: Iterable[Row], device: Device) -> Timed:
    """What ran of our own on a device, by problem and by the text of its configuration."""
    found: Timed = {}
    known: dict[Problem, dict[str, Configuration]] = {}
    for row in rows:
        problem = parsed(row.workload)
        if (
            problem is None
            or problem.op not in FAMILIES
            or row.core != device.core
            or row.seconds == math.inf
        ):
            continue
        if problem not in known:
            known[problem] = {written(one): one for one in space(problem, device.capability)}
        if row.configuration in known[problem]:
            configuration = known[problem][row.configuration]
            found.setdefault(problem, {})[row.configuration] = (configuration, row.seconds)
    return found


def samples(rows: Iterable[Row], device: Device) -> Iterator[Sample]:
    for problem, candidates in timed(rows, device).items():
        for configuration, seconds in candidates.values():
            paper = predicted(family_of(problem).work(problem, configuration), device)
            yield Sample(configuration=configuration, predicted=paper, seconds=seconds)


def residual_of(rows: Iterable[Row], device: Device) -> Residual:
    """What the rows of a device teach about it."""
    return learnt([*samples(rows, device)])


def quality(rows: Iterable[Row], device: Device, residual: Residual, *, first: int) -> float:
    """The geometric mean of `top first` over all problems with several rows; 1 where there are none."""
    logarithms = []
    for problem, candidates in timed(rows, device).items():
        names = [written(one) for one in ordered(problem, device, residual) if written(one) in candidates]
        if len(names) > 1:
            seconds = [candidates[name][1] for name in names]
            logarithms.append(math.log(min(seconds) / min(seconds[:first])))
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else 1.0


def ordered(problem: Problem, device: Device, residual: Residual) -> list[Configuration]:
    """All candidates of a problem, the fastest on paper first."""
    work = family_of(problem).work

    def on_paper(configuration: Configuration) -> float:
        return residual(configuration, predicted(work(problem, configuration), device))

    return sorted(space(problem, device.capability), key=on_paper)
