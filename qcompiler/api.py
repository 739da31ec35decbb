"""The product: `compile`, `explain`, `export_onnx`, `export_library` and `load`.

trace >> canonical >> decide (calibrate, plan) >> materialize >> lower >> prove >> guard
"""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from qcompiler import artifact, evidence, manifest
from qcompiler.backends import AUTO, check_threads, find_backend
from qcompiler.backends.base import Backend, Executable, Prediction, Travelling
from qcompiler.backends.guard import Verdict, guard
from qcompiler.engines import Entry, fastest, is_worth_trying
from qcompiler.errors import ContractError, QCompilerError, TargetError, TraceError
from qcompiler.ir import Graph, as_call, flatten_inputs
from qcompiler.ir.trace import Model
from qcompiler.job import Job, take
from qcompiler.passes.check import Contract
from qcompiler.passes.decide import Decision, decide
from qcompiler.passes.forms import forms
from qcompiler.plan import Plan
from qcompiler.progress import Tell
from qcompiler.proof import Proof, at_home, facts, prove, proven, quantized
from qcompiler.recipe import Recipe, find_recipe
from qcompiler.report import Report
from qcompiler.report.summary import headline
from qcompiler.steps import Steps
from qcompiler.target import Target, find_target

if TYPE_CHECKING:
    from qcompiler.backends.tvm.library import Library


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled model: takes and gives what the model does, on the batch sizes the model allows."""

    graph: Graph
    plan: Plan
    backend: Backend
    executable: Executable
    data: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {headline(self.data)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat = flatten_inputs(self.graph, args, kwargs)
        return pytree.tree_unflatten(self.executable(flat), self.graph.signature.out_spec)

    def report(self) -> Report:
        """What was decided, what runs, how exact and how fast it is."""
        return Report(data=self.data)

    def to_dict(self) -> dict[str, Any]:
        """The report's data."""
        return self.report().to_dict()

    def measured(self, metric: Any, float_model: Any, *, weights_are_random: bool = False) -> "Compiled":
        """The same model with a task metric (see qcompiler.models) in its report."""
        result = metric(self)
        figures = {
            "name": metric.name, "samples": metric.samples,
            "float": metric(float_model)[metric.name], "quantized": result[metric.name],
        }  # fmt: skip
        known = {"metric": figures, "weights_are_random": weights_are_random}
        return replace(self, data={**self.data, "accuracy": {**self.data["accuracy"], **known}})

    def save(self, path: str | Path) -> None:
        """Write the artifact folder in one step: everything or nothing; equal seeds give equal bytes."""
        with artifact.written_atomically(Path(path)) as folder:
            self.backend.write(self.graph, folder)
            artifact.write_graph(folder, self.graph, self.plan)
            artifact.write_json(folder / "report.json", self.data)
            self.report().save(folder / "report.html")
            artifact.write_manifest(folder, self.data["manifest"], self.graph)


def compile(
    model: Model,
    example_inputs: Any = None,
    *,
    calibration: Iterable[Any] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
    target: str | Target = "cpu",
    backend: str = AUTO,
    strict: bool = False,
    whole: bool = False,
    threads: int | None = None,
    seed: int = 0,
    database: str | Path | None = None,
    progress: bool = True,
) -> Compiled:
    """Quantize a model, prove it against the reference, and return it ready to call.

    model: nn.Module, fx.GraphModule, ExportedProgram, or the path of a .pt2 file.
    example_inputs: a tensor, a tuple of arguments or a dict of keywords, on which the model is traced and
        timed; an exported program has its own.
    calibration: iterable of batches in the same forms; the example inputs if absent, and the report says so.
    recipe: "int8", "int8-mixed", "int8-dynamic", "w8a16", "w4a16", "w4a16-best", "fp8", "fp8-dynamic",
        "fp8-block", a .json file, a mapping or a Recipe.
    backend: "ort", "tvm", "triton", "reference", or "auto": the target's own, and where the model is large
        enough also the machine's others, of which the fastest is kept.
    strict: a layer planned in integers that the engine runs in float is an error (ContractError).
    whole: a model that cannot be traced as a whole is an error (TraceError), as it is under `strict`; else
        one whose path depends on its data is compiled region by region.
    threads: of the engine; default all cores this process may use.
    database: measured schedules for backends "tvm" and "triton"; by default those of `qcompiler tune`.

    Raises a QCompilerError that says what, where, why and what to do.
    """
    check_threads(threads)
    chosen, aim = find_recipe(recipe), find_target(target, backend)
    engine = find_backend(backend, aim, database=database)
    with Steps(visible=progress) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            job = take(
                model, example_inputs, calibration, steps.tell, forms=forms(chosen, aim), floats=aim.floats
            )
        except TraceError as error:
            if strict or whole or not error.is_control_flow or not isinstance(model, nn.Module):
                raise
            from qcompiler.region.build import Settings
            from qcompiler.region.model import by_region

            wanted = Settings(recipe=chosen, target=aim, backend=engine, threads=threads, seed=seed)
            return by_region(model, example_inputs, calibration, wanted, because=error, tell=steps.tell)

        def made(job: Job, aim: Target, engine: Backend, tell: Tell) -> Made:
            decision = decide(job.original, job.data, chosen, aim, tell=tell)
            proof = prove(job, decision, engine, threads=threads, strict=strict, tell=tell)
            race = raced(job, proof, engine, threads=threads, strict=strict, tell=tell)
            compiled = assembled(job, proof, race, engine, threads=threads, seed=seed)
            return Made(job=job, decision=decision, compiled=compiled)

        own = made(job, aim, engine, steps.tell)
        is_alone = backend != AUTO or not aim.kin  # what runs on a GPU that is absent has no time, either
        if is_alone or not is_worth_trying(own.decision.graph, own.decision.plan, job.batch):
            return own.compiled
        found, refused = [own], {}
        for name, kin in sorted(aim.kin.items()):
            try:
                torch.manual_seed(seed)
                other, tell = find_target(kin), named(name, steps.tell)
                data = job.data if job.has_data else None
                again = take(
                    model, example_inputs, data, tell, forms=forms(chosen, other), floats=other.floats
                )
                found.append(made(again, other, find_backend(name, other), tell))
            except QCompilerError as error:
                refused[name] = str(error)
        return best_of(found, refused, steps.tell)


def explain(
    model: Model,
    example_inputs: Any = None,
    *,
    calibration: Iterable[Any] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
    target: str | Target = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Decision:
    """What `compile` would decide for the same arguments: the plan, and in `graph.notes` what was refused.

    Nothing is lowered, run by an engine or timed.
    """
    chosen, aim = find_recipe(recipe), find_target(target)
    with Steps(visible=progress) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        job = take(
            model, example_inputs, calibration, steps.tell, forms=forms(chosen, aim), floats=aim.floats
        )
        return decide(job.original, job.data, chosen, aim, tell=steps.tell)


def export_onnx(
    model: Model,
    example_inputs: Any,
    path: str | Path,
    *,
    calibration: Iterable[Any] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
    target: str | Target = "cpu",
    opset: int | None = None,
    portable: bool = True,
    strict: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Contract:
    """Write a quantized model as QDQ ONNX, after loading it back and comparing it with the reference.

    portable: standard operators only, for any engine; without it the file is what `compile` runs, with
        operators of ONNX Runtime where they are faster.

    Returns the contract: planned against executed precision of every layer in ONNX Runtime. Raises
    ContractError, and writes nothing, if the outputs are further from the reference than allowed, or
    under `strict` if a layer planned in integers runs in float.
    """
    chosen, aim = find_recipe(recipe), find_target(target)
    path = Path(path)
    artifact.check_onnx_file(path)
    with Steps(visible=progress) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        job = take(
            model, example_inputs, calibration, steps.tell, forms=forms(chosen, aim), floats=aim.floats
        )
        decision = decide(job.original, job.data, chosen, aim, tell=steps.tell)
        return written_onnx(
            job, decision, path, opset=opset, portable=portable, strict=strict, tell=steps.tell
        )


def export_library(
    compiled: Compiled, example_inputs: Any, path: str | Path, *, isa: str | None = None
) -> "Library":
    """Write a model compiled with backend "tvm" as a folder that runs without qcompiler, torch and compilers.

    example_inputs: as for `compile`; their shapes are those that the library takes.
    isa: an instruction set of docs/tvm.md that this CPU has, for CPUs with less than it; the model's own if
        absent.

    The folder holds machine code, so only those who trust you will load it; `Compiled.save` writes none. It
    is loaded back and compared with the compiled model before it is put in place: both compute the same, to
    the last bit, or ContractError is raised. Raises TargetError where the model runs on another engine or
    nothing can link, LoweringError with the nodes that only torch computes.
    """
    from qcompiler.backends.tvm import Tvm, TvmExecutable
    from qcompiler.backends.tvm.library import write_library

    folder = Path(path)
    artifact.check_replaceable(folder)
    executable = getattr(compiled, "executable", None)
    if not isinstance(executable, TvmExecutable):
        kept = isinstance(compiled, Compiled) and compiled.data["manifest"].get("kept") == "float"
        raise TargetError(
            "this model does not run on kernels of our own, which a library is made of",
            why="the speed guard kept the float model (see its report)" if kept else None,
            fix="write ONNX instead (export_onnx)" if kept else "compile it with backend='tvm'",
        )
    if isa is not None:
        chosen = Tvm(executable.target, isa=isa).lower(compiled.graph, threads=1)
        assert isinstance(chosen, TvmExecutable)
        executable = chosen
    args, kwargs = as_call(example_inputs)
    return write_library(executable, flatten_inputs(compiled.graph, args, kwargs), folder)


def load(path: str | Path, *, threads: int | None = None, database: str | Path | None = None) -> Compiled:
    """Open what `Compiled.save` wrote; checks every file against the manifest and executes nothing of it."""
    check_threads(threads)
    folder = Path(path)
    saved = artifact.read_manifest(folder)
    backend = find_backend(str(saved["backend"]), find_target(str(saved["target"])), database=database)
    graph, plan = artifact.read_graph(folder, saved)
    executable = backend.open(graph, folder, threads=threads)
    manifest.warn_of_other_cpu(saved)
    # The report is not signed; what is saved again speaks by the manifest that is.
    data = artifact.read_report(folder) | {"manifest": artifact.described(saved)}
    return Compiled(graph=graph, plan=plan, backend=backend, executable=executable, data=data)


# ---------------------------------------------------------------- the last steps of compile and export_onnx


def written_onnx(
    job: Job, decision: Decision, path: Path, *, opset: int | None, portable: bool, strict: bool, tell: Tell
) -> Contract:
    """Write what was decided as QDQ ONNX, and put it in place once it is proven."""
    from qcompiler.backends.ort import check_opset, open_executable, publish, write_onnx

    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        graph = quantized(decision)
        check_opset(graph, opset, decision.target)
        tell("writing ONNX", 0, None)
        draft = Path(folder) / path.name
        write_onnx(graph, draft, opset=opset, portable=portable)
        executable = open_executable(graph, draft, threads=None)
        promised = proven(job, decision, executable, strict=strict, tell=tell).contract
        publish(draft, path)
    return promised


@dataclass(frozen=True, kw_only=True)
class Race:
    """The proof of what ships, and what has decided: the speed guard's verdict, or predictions.

    kept: "quantized", "partly" or "float".
    """

    shipped: Proof
    kept: str
    verdict: Verdict | None = None
    predictions: Sequence[Prediction] = ()


def raced(
    job: Job, proof: Proof, backend: Backend, *, threads: int | None, strict: bool, tell: Tell
) -> Race | None:
    """Let the speed guard decide what ships, where the backend is meant to be fast."""
    fast = at_home(proof.executable)
    if fast is None and isinstance(proof.executable, Travelling):
        return foretold(job, proof, proof.executable, backend, threads=threads, strict=strict, tell=tell)
    lowered = backend.lower(job.original, threads=threads) if fast is not None else None
    floating = at_home(lowered) if lowered is not None else None
    if fast is None or lowered is None or floating is None:
        return None
    proofs = {"quantized": proof}

    def lower(decision: Decision) -> Any:
        """A contender with some layers in float must hold what the first one holds."""
        try:
            proofs["partly"] = prove(job, decision, backend, threads=threads, strict=strict, tell=tell)
        except ContractError:
            return None
        return at_home(proofs["partly"].executable)

    tell("timing", 0, None)
    verdict = guard(
        proof.decision, fast, floating, job.timed, lower=lower, tick=lambda: tell("timing", 1, None)
    )
    if verdict.kept == "float":
        kept = proof.decision.all_float(job.original, verdict.given_up[0].why)
        proofs["float"] = proven(job, kept, lowered, strict=strict, tell=tell)
    return Race(shipped=proofs[verdict.kept], kept=verdict.kept, verdict=verdict)


def foretold(
    job: Job, proof: Proof, engine: Travelling, backend: Backend, *, threads: int | None, strict: bool,
    tell: Tell,
) -> Race:  # fmt: skip
    """Let predictions decide what ships, where the engine's device is absent."""
    found = engine.predicted(job.timed)
    planned = {layer.node for layer in proof.decision.plan.layers if layer.precision != "float"}
    losing = {name: each.why for each in found if not each.kept for name in each.nodes if name in planned}
    if not losing:
        return Race(shipped=proof, kept="quantized", predictions=found)
    if planned - set(losing):
        fewer = proof.decision.keeping_float(losing)
        partly = prove(job, fewer, backend, threads=threads, strict=strict, tell=tell)
        return Race(shipped=partly, kept="partly", predictions=found)
    kept = proof.decision.all_float(job.original, next(iter(losing.values())))
    floating = proven(job, kept, backend.lower(job.original, threads=threads), strict=strict, tell=tell)
    return Race(shipped=floating, kept="float", predictions=found)


def assembled(
    job: Job, proof: Proof, race: Race | None, backend: Backend, *, threads: int | None, seed: int
) -> Compiled:
    """What ships, with the report of what was found out on the way.

    The report speaks of the model that ships; where that is float, of the quantized one that was given up.
    """
    shipped = race.shipped if race else proof
    kept = race.kept if race else "quantized"
    told = proof if kept == "float" else shipped
    data = facts(job, told, race.verdict if race else None, threads=threads)
    if race and race.verdict is None:
        data["speed"] = evidence.foretold(race.predictions, kept)
    made = manifest.describe(job, shipped, backend, kept=kept, threads=threads, seed=seed)
    return Compiled(
        graph=shipped.graph, plan=shipped.decision.plan, backend=backend, executable=shipped.executable,
        data=data | {"manifest": made},
    )  # fmt: skip


# ---------------------------------------------------------------- the fastest of several engines


@dataclass(frozen=True, kw_only=True)
class Made:
    """What one engine made of a model, and of what."""

    job: Job
    decision: Decision
    compiled: Compiled


def best_of(found: Sequence[Made], refused: Mapping[str, str], tell: Tell) -> Compiled:
    """The fastest of those as exact, with the figures of all in its report."""
    tell("timing the engines", 0, None)
    entries = [
        Entry(
            backend=made.compiled.backend.name, executable=made.compiled.executable, inputs=made.job.timed,
            sqnr_db=made.compiled.data["accuracy"]["sqnr_db"] or -math.inf,
        )
        for made in found
    ]  # fmt: skip
    outcome = fastest(entries, refused, tick=lambda: tell("timing the engines", 1, None))
    kept = found[outcome.best].compiled
    return replace(kept, data={**kept.data, "engines": list(outcome.rows)})


def named(engine: str, tell: Tell) -> Tell:
    """The same steps, said to be those of another engine."""
    return lambda what, done, total: tell(f"{engine}: {what}", done, total)


__all__ = ["Compiled", "compile", "explain", "export_library", "export_onnx", "load"]
