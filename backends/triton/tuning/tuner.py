"""Problems measured, and each one's rows kept at once: a run that is stopped goes on where it was.

    problem  -->  all candidates, predicted  -->  the first few, compiled  -->  race  -->  rows

The order of candidates depends on the package alone, not on what else was measured: whoever runs again
measures what has no row, which is nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import torch

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.ops.schedule import WRONG
from qcompiler.backends.triton.tuning.callers import CALLERS
from qcompiler.backends.triton.tuning.compiling import Verdict
from qcompiler.backends.triton.tuning.device import Device
from qcompiler.backends.triton.tuning.families import FLOAT, family_of, space, written
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.ranking import ordered
from qcompiler.backends.triton.tuning.residual import Residual
from qcompiler.backends.triton.tuning.source import caller, compiler, version_of
from qcompiler.progress import Tell, silent
from qcompiler.tune.database import Core, Row, is_of, ranked
from qcompiler.tune.search import ROUNDS, Measured, race

TRIALS = 8  # candidates of a problem, beside the default and the peers
RESERVE = 24  # more that are compiled, at most
NOTHING = Residual()
UNKNOWN = float("inf")  # seconds of what cannot run

Judge = Callable[[Problem, Sequence[Configuration]], Iterable[Verdict]]


class Bench(Protocol):
    """The contenders of one problem, ready to run: by the text of their rows."""

    def gate(self, name: str) -> str:
        """Why a contender's numbers are wrong; "" where they are right."""

    def sample(self, name: str) -> float:
        """Seconds of one call of a contender, its weights far."""


Prepare = Callable[[Problem, Mapping[str, Configuration], Sequence[str]], Bench]
"""Of a problem, its candidates by name, and its peers."""


class Kept(Protocol):
    """A database, or what stands for one."""

    def rows(self, core: Core | None = None) -> list[Row]: ...

    def add(self, rows: Iterable[Row]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """A problem, and what of it has no row: candidates, the most promising first, and peers.

    reserve: what is tried in the place of candidates that the compiler refuses.
    """

    problem: Problem
    candidates: tuple[Configuration, ...]
    reserve: tuple[Configuration, ...]
    peers: tuple[str, ...]


def is_current(row: Row, problem: Problem) -> bool:
    """Whether a row is of what would be measured now."""
    return is_of(row, versions(problem, row.configuration))


def versions(problem: Problem, contender: str = "") -> Mapping[str, str]:
    """What a contender's time depends on besides the device: a kernel, or torch and how it is called."""
    kernel = family_of(problem).kernel
    called = CALLERS[problem.op].get(contender)
    made_by = compiler(kernel) if called is None else caller(torch.__version__, called)
    return {"compiler": made_by, "qcompiler": version_of("qcompiler")}


def job(
    problem: Problem,
    rows: Iterable[Row],
    device: Device,
    residual: Residual = NOTHING,
    trials: int = TRIALS,
    shipped: Iterable[Row] = (),
) -> Job:
    """What is left to measure of a problem: the default, a prior, the best on paper, and one by lot.

    Priors are rows of another version or kernel, and those that came with the package: the best of them is
    tried first, and trusted in nothing.
    """
    now = versions(problem)
    mine = [row for row in rows if row.workload == problem.text and row.core == device.core]
    known = {row.configuration for row in mine if is_current(row, problem)}
    default = space(problem, device.capability)[:1]
    every = {written(one): one for one in (*default, *ordered(problem, device, residual))}
    # Where something is known, a prior was tried then.
    older = [] if known else [row for row in mine if not is_current(row, problem)]
    given = [row for row in shipped if row.workload == problem.text and row.core == device.core and not known]
    priors = [row.configuration for row in ranked([*older, *given], now)]
    wanted = [*[*every][:trials], *[name for name in priors if name in every][:1]]
    chosen = dict.fromkeys([*wanted, *drawn(problem, [*every][trials:])])
    candidates = tuple(every[name] for name in chosen if name not in known)
    reserve = tuple(every[name] for name in every if name not in chosen and name not in known)
    peers = [peer for peer in family_of(problem).peers if peer not in known]
    if peers and not candidates:  # a peer that is measured anew runs beside the best of ours
        ran = ranked([row for row in mine if row.configuration in known & {*every}], now)
        candidates = tuple(every[row.configuration] for row in ran[:1])
    if candidates or peers:  # what ratios are taken to runs beside whatever is measured
        peers = [*dict.fromkeys([FLOAT, *peers])]
    return Job(problem=problem, candidates=candidates, reserve=reserve[:RESERVE], peers=tuple(peers))


def drawn(problem: Problem, others: Sequence[str]) -> list[str]:
    """One of those that nobody recommends, the same each time: predictions are wrong in ways of their own."""
    return sorted(others, key=lambda name: sha256(f"{problem.text} {name}".encode()).digest())[:1]


def waiting(
    problems: Iterable[Problem],
    rows: Sequence[Row],
    device: Device,
    *,
    residual: Residual = NOTHING,
    shipped: Sequence[Row] = (),
    trials: int = TRIALS,
) -> list[Job]:
    """Those of which something is left to measure."""
    jobs = (job(problem, rows, device, residual, trials, shipped) for problem in problems)
    return [one for one in jobs if one.peers]


def tune(
    problems: Sequence[Problem],
    database: Kept,
    device: Device,
    judge: Judge,
    prepare: Prepare,
    *,
    residual: Residual = NOTHING,
    shipped: Sequence[Row] = (),
    trials: int = TRIALS,
    rounds: int = ROUNDS,
    until: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = silent,
) -> int:
    """Measure what has no row, problem by problem, until `clock` shows `until`; returns how many are left."""
    rows = database.rows(device.core)
    jobs = waiting(problems, rows, device, residual=residual, shipped=shipped, trials=trials)
    for done, one in enumerate(jobs):
        if clock() > until:
            return len(jobs) - done
        tell(one.problem.text, done, len(jobs))
        for found_now in measured(one, device, judge, prepare, rounds, until, clock):
            database.add(found_now)
    return 0


def measured(
    job: Job, device: Device, judge: Judge, prepare: Prepare, rounds: int, until: float,
    clock: Callable[[], float],
) -> Iterator[list[Row]]:  # fmt: skip
    """One row for each contender: seconds, or infinity and why it does not compile, fit or compute right.

    In parts, as they are known: what the compiler refuses, what is wrong, what ran, and the best once more.
    """

    def rows(results: Iterable[Measured[str]]) -> list[Row]:
        return [row(job.problem, result, device) for result in results]

    def refused(why: Mapping[str, str]) -> list[Row]:
        return [
            row(job.problem, Measured(candidate=name, seconds=(UNKNOWN,)), device, reason)
            for name, reason in why.items()
        ]

    verdicts = fitting(job, judge)
    fit = {written(one.configuration): one.configuration for one in verdicts if not one.fault}
    yield refused({written(one.configuration): one.fault for one in verdicts if one.fault})
    bench = prepare(job.problem, fit, job.peers)
    wrong = {name: f"{WRONG}{why}" for name in (*fit, *job.peers) if (why := bench.gate(name))}
    yield refused(wrong)
    right = [name for name in (*fit, *job.peers) if name not in wrong]
    results = race(right, bench.sample, rounds=rounds, until=until, clock=clock) if right else []
    yield rows(results)
    default = written(space(job.problem, device.capability)[0]) if fit else ""
    yield rows(confirmed(results, fit, default, bench, rounds))


def fitting(job: Job, judge: Judge) -> list[Verdict]:
    """Verdicts on a job's candidates, and for each that the compiler refuses on the next on paper."""
    verdicts, reserve = [*judge(job.problem, job.candidates)], [*job.reserve]
    missing = sum(bool(one.fault) for one in verdicts)
    while missing and reserve:
        more = [*judge(job.problem, reserve[:missing])]
        verdicts, reserve = [*verdicts, *more], reserve[missing:]
        missing = sum(bool(one.fault) for one in more)
    return verdicts


def confirmed(
    results: Sequence[Measured[str]],
    fit: Mapping[str, Configuration],
    default: str,
    bench: Bench,
    rounds: int,
) -> list[Measured[str]]:
    """The best and the default once more, by themselves: who wins a race of many may have been lucky."""
    mine = [result.candidate for result in results if result.candidate in fit]
    if default not in mine or mine[0] == default:
        return []
    return race([mine[0], default], bench.sample, rounds=rounds)


def row(problem: Problem, result: Measured[str], device: Device, reason: str = "") -> Row:
    return Row(
        workload=problem.text, configuration=result.candidate, isa=device.core.isa,
        processor=device.core.processor, seconds=result.median, spread=result.spread,
        rounds=len(result.seconds), reason=reason, **versions(problem, result.candidate),
    )  # fmt: skip
