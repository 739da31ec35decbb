"""From a captured piece and its recorded calls to what runs in its place: integers, islands, or torch.

build : (module, calls) -> Built        the same answers in the same form; never fails for want of a kernel
"""

import copy
import fnmatch
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Node

from qcompiler.api import Compiled, assembled, raced
from qcompiler.backends.base import Backend
from qcompiler.backends.reference import Reference
from qcompiler.errors import InputError, QCompilerError
from qcompiler.ir import Graph, flatten_inputs
from qcompiler.ir.spec import label, module_path, source_line
from qcompiler.job import take
from qcompiler.passes.calibrate import batches
from qcompiler.passes.decide import decide
from qcompiler.passes.forms import forms
from qcompiler.progress import silent
from qcompiler.proof import prove
from qcompiler.recipe import Recipe
from qcompiler.region.capture import bound, inputs, is_number, resolved
from qcompiler.region.program import program
from qcompiler.region.split import (
    Islands,
    Seen,
    apart,
    cut,
    input_written,
    inspect,
    is_contraction,
    is_island,
    op_name,
    order_matters,
    probe,
)
from qcompiler.target import Target, find_target
from qcompiler.tune.measure import interleave

ROUNDS = 3  # of timing a part, of which the median counts


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How regions are compiled; `guard` takes back what is not faster than float."""

    recipe: Recipe
    target: Target
    backend: Backend
    threads: int | None = None
    guard: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a region: on the engine (`compiled`), or torch's, because `why`."""

    nodes: int
    ops: tuple[str, ...]
    source: str | None
    microseconds: float
    why: str = ""
    island: bool = False
    compiled: Compiled | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What runs in place of a module, and of what it is made."""

    run: Callable[..., Any]
    pieces: tuple[Piece, ...]

    @property
    def compiled(self) -> list[Compiled]:
        return [piece.compiled for piece in self.pieces if piece.compiled is not None]


def build(module: fx.GraphModule, calls: Sequence[Sequence[Any]], settings: Settings) -> Built:
    """Compile what can be compiled; `calls` are recorded inputs, weights among them."""
    module, kept = resolved(module)
    calls = [[call[position] for position in kept] for call in calls]
    built = assemble(module, calls, settings)
    return replace(built, run=picking(built.run, kept))


def assemble(module: fx.GraphModule, calls: Sequence[Sequence[Any]], settings: Settings) -> Built:
    seen = Seen.of(module, calls[0])
    if not any(map(is_contraction, module.graph.nodes)):
        return in_torch(module, calls, "there is nothing in it to quantize")
    if (why := input_written(seen)) is not None:
        return in_torch(module, calls, why)
    islands = inspect(module, seen, settings.backend)
    if not islands:
        try:
            return in_integers(module, calls, settings)
        except (QCompilerError, NotImplementedError) as error:
            why = str(error)
            islands = probe(module, seen, settings.backend, error)
    if not islands:
        return in_torch(module, calls, why or "")
    if (why := order_matters(seen)) is not None:
        return in_torch(module, calls, f"{next(iter(islands.values()))}, and {why}")
    return around(module, calls, islands, settings)


def around(
    module: fx.GraphModule, calls: Sequence[Sequence[Any]], islands: Islands, settings: Settings
) -> Built:
    """Cut at the islands, and build the parts between them one by one."""
    whole = cut(module, islands)
    why = {node.name: reason for node, reason in islands.items()}
    parts = [(str(node.target), node) for node in whole.graph.nodes if node.op == "call_module"]
    given = calls_of_parts(whole, [node for _, node in parts], calls)
    pieces: list[Piece] = []
    for name, node in parts:
        part = whole.get_submodule(name)
        assert isinstance(part, fx.GraphModule)
        if is_island(name):
            reasons = [why[inner.name] for inner in part.graph.nodes if inner.name in why]
            built = in_torch(part, given[node], reasons[0] if reasons else "", island=True)
        else:
            built = build(part, given[node], settings)
        setattr(whole, name, Part(built.run))
        pieces += built.pieces
    return Built(run=whole, pieces=tuple(pieces))


on_reference: ContextVar[bool] = ContextVar("on_reference", default=False)


class Quantized:
    """A compiled part; where `on_reference` is set, by the exact arithmetic of the reference instead."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled

    def __call__(self, *given: Any) -> Any:
        return (self.reference if on_reference.get() else self.compiled)(*given)

    @cached_property
    def reference(self) -> Compiled:
        target = find_target(self.compiled.data["manifest"]["target"])
        return replace(self.compiled, executable=Reference(target).lower(self.compiled.graph))


class Part(nn.Module):
    """A function in the place of a submodule."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *given: Any) -> Any:
        return self.run(*given)


def calls_of_parts(
    whole: fx.GraphModule, parts: Sequence[Node], calls: Sequence[Sequence[Any]]
) -> dict[Node, list[list[Any]]]:
    """What each part is given in every recorded call."""
    found: dict[Node, list[list[Any]]] = {node: [] for node in parts}
    for call in calls:
        values = Seen.of(whole, call).values
        for node in parts:
            found[node].append([values[arg] if isinstance(arg, Node) else arg for arg in node.args])
    return found


def in_integers(module: fx.GraphModule, calls: Sequence[Sequence[Any]], settings: Settings) -> Built:
    """The road of `qcompiler.compile`; a result that computes nothing on integers is no result."""
    alone, left = bound(module, calls[0])
    given = [tuple(call[position] for position in left) for call in calls]
    compiled = quantize(alone, given, settings)
    if not compiled.data["coverage"]["executed_integer"]:
        return in_torch(module, calls, "no layer of it pays in integers")
    speed = compiled.data["speed"]
    if speed and speed["kept"] == "float":
        return in_torch(module, calls, f"integers do not pay: {speed['given_up'][0]['why']}")
    run = picking(Quantized(compiled), left)
    if (
        speed and "predicted" not in speed
    ):  # the guard raced it against the engine's own float; torch may be faster than either
        timing = interleave(
            {"torch": lambda: module(*calls[0]), "engine": lambda: run(*calls[0])}, rounds=2 * ROUNDS + 1
        )
        if timing.ratio("torch", "engine") < 1:
            figures = f"{timing.median('engine') * 1e6:.0f} us against {timing.median('torch') * 1e6:.0f} us"
            return in_torch(module, calls, f"it is slower on the engine than in torch: {figures}")
    piece = described(module, calls, run, compiled=compiled)
    return Built(run=run, pieces=(piece,))


@torch.no_grad()
def quantize(module: fx.GraphModule, calls: Sequence[tuple[Any, ...]], settings: Settings) -> Compiled:
    """Trace, decide, prove and guard one part."""
    if any(is_number(node) for node in inputs(module)) or not inputs(module):
        raise InputError("a part takes something else than tensors", fix="it stays in torch")
    wanted = forms(settings.recipe, settings.target)
    job = take(program(module, calls[0]), calls[0], calls, silent, forms=wanted)
    job = replace(job, data=[call for call in job.data if fits(job.original, call)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        recipe = applicable(settings.recipe, job.original)
        decision = decide(job.original, job.data, recipe, settings.target)
        proof = prove(job, decision, settings.backend, threads=settings.threads, strict=False, tell=silent)
        race = None
        if settings.guard:
            race = raced(job, proof, settings.backend, threads=settings.threads, strict=False, tell=silent)
        return assembled(job, proof, race, settings.backend, threads=settings.threads, seed=settings.seed)


def fits(graph: Graph, call: Sequence[Any]) -> bool:
    """Whether a recorded call has the shapes of the part as traced: captures of one code may differ."""
    ((args, kwargs),) = batches([tuple(call)])
    try:
        flatten_inputs(graph, args, kwargs)
    except InputError:
        return False
    return True


def applicable(recipe: Recipe, graph: Graph) -> Recipe:
    """The recipe without overrides for layers of other regions."""
    names = {name for node in graph.nodes for name in (node.name, label(node), module_path(node))}
    mine = tuple(override for override in recipe.overrides if fnmatch.filter(names, override.pattern))
    return replace(recipe, overrides=mine)


def in_torch(
    module: fx.GraphModule, calls: Sequence[Sequence[Any]], why: str, *, island: bool = False
) -> Built:
    # Timed as a copy, for it may write to what is the user's.
    piece = described(module, [apart(calls[0])], copy.deepcopy(module), why=why, island=island)
    return Built(run=module, pieces=(piece,))


def described(
    module: fx.GraphModule, calls: Sequence[Sequence[Any]], run: Callable[..., Any], **facts: Any
) -> Piece:
    """A piece with what a reader knows it by, and its time on the first recorded call."""
    work = [node for node in module.graph.nodes if node.op.startswith("call")]
    return Piece(
        nodes=len(work), ops=tuple(dict.fromkeys(map(op_name, work))),
        source=next((line for line in map(source_line, work) if line), None),
        microseconds=microseconds(run, calls[0]), **facts,
    )  # fmt: skip


@torch.no_grad()
def microseconds(run: Callable[..., Any], call: Sequence[Any]) -> float:
    return interleave({"part": lambda: run(*call)}, rounds=ROUNDS).median("part") * 1e6


def picking(run: Callable[..., Any], positions: Sequence[int]) -> Callable[..., Any]:
    """f  -->  the f that takes more arguments than it reads."""

    def picked(*given: Any) -> Any:
        return run(*(given[position] for position in positions))

    return picked
