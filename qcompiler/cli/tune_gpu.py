"""`qcompiler tune --target cuda`: what computes each linear of a model fastest, by the number of its rows.

Ops that no linear of a model needs, as norms, blocks of Hadamard, and both orders for training, are named one
by one, as the warning does that tells of a missing row.

Without a GPU, `--no-device` does what needs none: it orders candidates on paper, compiles the first of each
problem where Triton is installed, and says what it found.
"""

import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from qcompiler.cli import tune_left, tune_refused
from qcompiler.cli.screen import complain, say, show
from qcompiler.errors import InputError

if TYPE_CHECKING:
    from qcompiler.backends.triton.tuning.joint import Readings
    from qcompiler.backends.triton.tuning.problem import Problem
    from qcompiler.target import Target
    from qcompiler.tune.database import Database

EXAMPLE = "norm_quantize, int8 rms, M 4096, K 4096, bf16"
SHOWN = 3  # candidates of a problem that are compiled and listed where nothing is measured


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the linears of a model read, at so many rows each, and problems that were named one by one."""

    readings: "Readings"
    rows: Sequence[int]
    problems: "Sequence[Problem]"

    @property
    def every(self) -> "list[Problem]":
        from qcompiler.backends.triton.tuning.asked import linears_in, problems_of

        of_linears = (
            problem
            for linear in linears_in(self.readings)
            for M in self.rows
            for problem in problems_of(linear, self.readings, M)
        )
        return [*dict.fromkeys([*of_linears, *self.problems])]


def problems_named(texts: Sequence[str], rows: Sequence[int]) -> "list[Problem]":
    """The problems of some texts, at the numbers of rows that are given, or else at their own."""
    if not texts:
        return []
    from qcompiler.backends.triton.tuning.families import check
    from qcompiler.backends.triton.tuning.problem import parsed

    found = []
    for text in texts:
        one = parsed(text)
        if one is None:
            raise InputError(f"'{text}' is no problem", why=f"one reads like '{EXAMPLE}'")
        check(one)
        found += [replace(one, M=M) for M in rows] or [one]
    return found


def readings_in(source: Any, recipe: Any, aim: "Target", seed: int) -> "Readings":
    """What the linears of a model read, with the linears."""
    import torch

    from qcompiler.backends.triton.engine.layers import layers_of
    from qcompiler.backends.triton.engine.readings import readings_of
    from qcompiler.job import take
    from qcompiler.passes.decide import decide
    from qcompiler.passes.forms import forms
    from qcompiler.proof import quantized
    from qcompiler.steps import Steps

    with Steps(visible=True) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        job = take(
            source.model, source.example_inputs, source.calibration, steps.tell, forms=forms(recipe, aim),
            floats=aim.floats,
        )  # fmt: skip
        graph = quantized(decide(job.original, job.data, recipe, aim, tell=steps.tell))
    found = readings_of(layers_of(graph, aim).found)
    if not found:
        raise InputError(
            f"there is nothing to tune for '{aim.name}'",
            why=f"recipe '{recipe.name}' leaves no linear of the model on codes",
            fix="use --recipe int8-dynamic",
        )
    return found


def check_device() -> None:
    """InputError where nothing could be measured, before a model is loaded for it."""
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "there is no GPU here to measure on", fix="use --no-device to see what would be measured"
        )


def measured(wishes: Wishes, database: "Database", trials: int, budget: float) -> dict[str, Any]:
    """Measure on the GPU that is here, and say what decides from now on."""
    import torch

    from qcompiler.backends.triton.ops.schedule import NotMeasured, reading
    from qcompiler.backends.triton.tuning.bench import CudaBench
    from qcompiler.backends.triton.tuning.compiling import judged, pool
    from qcompiler.backends.triton.tuning.contest import contenders
    from qcompiler.backends.triton.tuning.device import device_of
    from qcompiler.backends.triton.tuning.model import tune_linears, tuned_by
    from qcompiler.backends.triton.tuning.ranking import residual_of
    from qcompiler.backends.triton.tuning.shipped import shipped
    from qcompiler.backends.triton.tuning.tuner import waiting
    from qcompiler.steps import Steps

    cuda = torch.device("cuda", torch.cuda.current_device())
    device = device_of(cuda)
    given, is_stopped = shipped(device.core), False
    with Steps(visible=True) as steps, pool() as executor, reading(database.path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotMeasured)  # of what is about to be measured
        try:
            left = tune_linears(
                wishes.readings, database, device,
                lambda problem, candidates: judged(problem, candidates, device.capability, executor, None),
                lambda problem, fit, peers: CudaBench(contenders(problem, fit, peers, cuda)),
                rows=wishes.rows, beside=wishes.problems, shipped=given, trials=trials,
                until=time.monotonic() + budget, tell=steps.tell,
            )  # fmt: skip
        except KeyboardInterrupt:  # all that was measured is kept, and is told
            is_stopped = True
            rows, learnt = database.rows(device.core), residual_of(given, device)
            left = len(waiting(wishes.every, rows, device, residual=learnt, shipped=given, trials=trials))
            left = max(left, 1 if wishes.readings else 0)  # the search for borders, which comes last
    tuned = tuned_by(wishes.readings, wishes.problems, database.rows(device.core), device)
    return {
        "device": device.name, "left": left, "stopped": is_stopped,
        "linears": [
            {"linear": str(linear), "decisions": str(decisions)}
            for linear, decisions in tuned.table.items()
        ],
        "chosen": [
            {
                "name": one.name, "M": one.M,
                "contender": one.contender, "us": one.us, "ratio": one.ratio,
                "of_roofline": one.of_roofline, "refused": one.refused,
            }
            for one in tuned.chosen
        ],
        "refused": tune_refused.figures(tuned.refused),
    }  # fmt: skip


def foreseen(wishes: Wishes, aim: "Target") -> dict[str, Any]:
    """What would be measured first, on a device of the target's kind."""
    from importlib.util import find_spec

    from qcompiler.backends.triton.engine.predict import device_for
    from qcompiler.backends.triton.tuning.compiling import judged, pool
    from qcompiler.backends.triton.tuning.families import family_of, written
    from qcompiler.backends.triton.tuning.predict import predicted
    from qcompiler.backends.triton.tuning.ranking import ordered, residual_of
    from qcompiler.backends.triton.tuning.shipped import shipped
    from qcompiler.steps import Steps

    device, compiles = device_for(aim), find_spec("triton") is not None
    problems = wishes.every
    residual, found = residual_of(shipped(device.core), device), []
    with ExitStack() as stack:
        steps = stack.enter_context(Steps(visible=True))
        executor = stack.enter_context(pool()) if compiles else None
        for done, problem in enumerate(problems):
            steps.tell(problem.text, done, len(problems))
            first = ordered(problem, device, residual)[:SHOWN]
            verdicts = judged(problem, first, device.capability, executor, None) if executor else ()
            faults: list[str | None] = [verdict.fault for verdict in verdicts]
            faults += [None] * (len(first) - len(faults))
            for one, fault in zip(first, faults, strict=True):
                paper = predicted(family_of(problem).work(problem, one), device)
                found.append({
                    "problem": problem.text, "configuration": written(one), "us": paper.seconds * 1e6,
                    "limit": paper.limit, "fault": fault,
                })  # fmt: skip
    return {"device": device.name, "is_compiled": compiles, "candidates": found}


def draw(told: dict[str, Any]) -> None:
    """Decisions by linear, or candidates by problem."""
    table = Table(box=None, pad_edge=False)
    if "linears" in told:
        draw_chosen(told["chosen"])
        tune_refused.draw(told["refused"])
        for name in ("linear", "computed by"):
            table.add_column(name, overflow="fold", header_style="dim")
        for linear in told["linears"]:
            table.add_row(Text(linear["linear"]), Text(linear["decisions"]))
        if told["linears"]:
            show(table)
        say(f"Measured on {told['device']}; rows in {told['database']}; {told['seconds']:.0f} s")
        tune_left.draw(told, "problems")
        return
    for name in ("problem", "candidate"):
        table.add_column(name, overflow="fold", header_style="dim")
    for name in ("us on paper", "waits for", "compiles"):
        table.add_column(name, justify="right", header_style="dim")
    for one in told["candidates"]:
        verdict = {None: "", "": "yes"}.get(one["fault"], one["fault"])
        table.add_row(
            Text(one["problem"]), Text(one["configuration"]), f"{one['us']:.1f}", one["limit"], Text(verdict)
        )
    show(table)
    say(f"Predicted for {told['device']}, and measured nowhere; {told['seconds']:.0f} s")
    if not told["is_compiled"]:
        complain("Triton is not installed, so nothing was compiled", kind="warning")


def draw_chosen(chosen: list[dict[str, Any]]) -> None:
    """What is the fastest at each number of rows, against float and against the device."""
    table = Table(box=None, pad_edge=False)
    for name in ("problem", "fastest"):
        table.add_column(name, overflow="fold", header_style="dim")
    for name in ("rows", "us", "of float's speed", "of roofline", "refused"):
        table.add_column(name, justify="right", header_style="dim")
    for one in chosen:
        share = one["of_roofline"]
        table.add_row(
            Text(one["name"]), Text(one["contender"]), str(one["M"]), f"{one['us']:.1f}",
            f"{one['ratio']:.2f}x", "" if share is None else f"{share:.0%}", str(one["refused"]),
        )  # fmt: skip
    show(table)
