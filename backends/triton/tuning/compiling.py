"""Candidates compiled side by side, without a GPU, and judged by their machine code."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures import kernel_named
from qcompiler.backends.triton.static import faults, findings
from qcompiler.backends.triton.tuning.families import family_of
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.errors import LoweringError


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A candidate, and why it is no candidate any more: "" where it is fit."""

    configuration: Configuration
    fault: str = ""


@contextmanager
def pool(workers: int | None = None) -> Iterator[Executor]:
    """Processes that compile. The interpreter is off in them: what it took hold of cannot be compiled.

    Ctrl-C, which a terminal sends to all processes, is for the one that asks to understand.
    """
    context = multiprocessing.get_context("spawn")
    held = os.environ.pop("TRITON_INTERPRET", None)
    try:
        executor = ProcessPoolExecutor(
            workers or os.cpu_count(), mp_context=context, initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )  # fmt: skip
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)
    finally:
        if held is not None:
            os.environ["TRITON_INTERPRET"] = held


def judged(
    problem: Problem,
    candidates: Sequence[Configuration],
    capability: int,
    executor: Executor,
    cache: Path | None,
) -> Iterator[Verdict]:
    """A verdict for each candidate, in their order; a cache remembers machine code by its source."""
    asked = ((problem, configuration, capability, cache) for configuration in candidates)
    yield from executor.map(verdict, *zip(*asked, strict=True)) if candidates else ()


def verdict(problem: Problem, configuration: Configuration, capability: int, cache: Path | None) -> Verdict:
    use = family_of(problem).use(problem)
    try:
        found = findings(
            kernel_named(configuration.kernel), use.types, use.constants, configuration,
            capability=capability, cache=cache,
        )  # fmt: skip
    except LoweringError as error:
        return Verdict(configuration=configuration, fault=str(error))
    return Verdict(configuration=configuration, fault="; ".join(faults(found, configuration.bounds)))
