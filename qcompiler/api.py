"""The product: `compile`, `explain`, `export_onnx` and `load`.

trace >> canonical >> decide (calibrate, plan) >> materialize >> lower >> check
"""

import hashlib
import importlib.metadata
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qcompiler import artifact, evidence
from qcompiler.backends.base import Executable
from qcompiler.backends.guard import Verdict, guard
from qcompiler.backends.reference import Reference, ReferenceExecutable
from qcompiler.errors import CalibrationError, LoweringError
from qcompiler.ir import Graph, evaluate, fingerprint, flatten_inputs, trace
from qcompiler.ir.trace import Model, load_program, own_inputs
from qcompiler.passes.calibrate import batches
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.check import Contract, Distance, contract, distance
from qcompiler.passes.decide import Decision, decide
from qcompiler.passes.materialize import materialize
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.plan import Plan
from qcompiler.progress import Tell, silent
from qcompiler.recipe import Recipe, find_recipe, recipe_to_mapping
from qcompiler.report import Report
from qcompiler.rewrite import run
from qcompiler.steps import Steps
from qcompiler.target import Target, find_target
from qcompiler.target.machine import this_cpu

CHECKED = 4  # samples on which the engine is compared with the reference
BACKENDS = ("auto", "ort", "reference")
VERSIONED = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled model: takes and gives what the model does, on the batch sizes the model allows."""

    graph: Graph
    plan: Plan
    executable: Executable
    data: Mapping[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat = flatten_inputs(self.graph, args, kwargs)
        return pytree.tree_unflatten(self.executable(flat), self.graph.signature.out_spec)

    def report(self) -> Report:
        """What was decided, what runs, how exact and how fast it is."""
        return Report(data=self.data)

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
        from qcompiler.backends.ort import write_onnx

        with artifact.written_atomically(Path(path)) as folder:
            write_onnx(self.graph, folder / "model.onnx")
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
    backend: str = "auto",
    strict: bool = False,
    threads: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Compiled:
    """Quantize a model, prove it against the reference, and return it ready to call.

    model: nn.Module, fx.GraphModule, ExportedProgram, or the path of a .pt2 file.
    example_inputs: a tensor, a tuple of arguments or a dict of keywords, on which the model is traced and
        timed; an exported program has its own.
    calibration: iterable of batches in the same forms; the example inputs if absent.
    recipe: "int8", "int8-dynamic", "w8a16", "w4a16", "fp8", a .json file, a mapping or a Recipe.
    strict: a layer planned in integers that the engine runs in float is an error (ContractError).
    threads: of the engine; default all cores this process may use.

    Raises a QCompilerError that says what, where, why and what to do.
    """
    chosen, aim = find_recipe(recipe), find_target(target)
    check_backend(backend)
    with Steps(visible=progress) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        graph, data = prepared(model, example_inputs, calibration, steps.tell)
        decision = decide(graph, data, chosen, aim, tell=steps.tell)
        job = Job(
            name=model_name(model), original=graph, data=data, example=example_inputs, decision=decision,
            threads=threads, seed=seed, strict=strict, tell=steps.tell,
        )  # fmt: skip
        return on_reference(job) if backend == "reference" else on_engine(job)


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
        graph, data = prepared(model, example_inputs, calibration, steps.tell)
        return decide(graph, data, chosen, aim, tell=steps.tell)


def export_onnx(
    model: Model,
    example_inputs: Any,
    path: str | Path,
    *,
    calibration: Iterable[Any] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
    target: str | Target = "cpu",
    opset: int | None = None,
    strict: bool = False,
) -> Contract:
    """Write a quantized model as QDQ ONNX, after loading it back and comparing it with the reference.

    Returns the contract: planned against executed precision of every layer in ONNX Runtime. Raises
    ContractError, and writes nothing, if the outputs are further from the reference than allowed, or
    under `strict` if a layer planned in integers runs in float.
    """
    from qcompiler.backends.ort import check_opset, open_executable, publish, write_onnx

    chosen, aim = find_recipe(recipe), find_target(target)
    path = Path(path)
    artifact.check_writable_file(path)
    graph, data = prepared(model, example_inputs, calibration, silent)
    decision = decide(graph, data, chosen, aim)
    quantized = lowered_form(decision)
    check_opset(quantized, opset, aim)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        draft = Path(folder) / path.name
        write_onnx(quantized, draft, opset=opset)
        executable = open_executable(quantized, draft, threads=None)
        compare(graph, quantized, executable, data, aim).enforce()
        ran = executable.execution(decision.plan)
        promised = contract(decision.plan, ran.layers, ran.stray)
        if strict:
            promised.enforce()
        publish(draft, path)
    return promised


def load(path: str | Path, *, threads: int | None = None) -> Compiled:
    """Open what `Compiled.save` wrote; checks every file against the manifest and executes nothing of it."""
    from qcompiler.backends.ort import open_saved

    folder = Path(path)
    manifest = artifact.read_manifest(folder)
    check_backend(str(manifest["backend"]))
    graph, plan = artifact.read_graph(folder, manifest)
    report = artifact.read_report(folder)
    aim = find_target(str(manifest["target"]))
    if manifest["backend"] == "reference":
        executable: Executable = Reference(aim).lower(graph)
    else:
        executable = open_saved(graph, folder / "model.onnx", threads=threads)
    warn_of_other_cpu(manifest)
    return Compiled(graph=graph, plan=plan, executable=executable, data=report)


# ---------------------------------------------------------------- the steps of compile


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `compile` knows once everything is decided."""

    name: str
    original: Graph
    data: Sequence[Any]
    example: Any
    decision: Decision
    threads: int | None
    seed: int
    strict: bool
    tell: Tell

    @property
    def sample(self) -> list[Any]:
        """The first calibration batch, in flat order: real values to compare on."""
        return next(flat(self.original, self.data, 1))

    @property
    def timed(self) -> list[Any]:
        """What the model is timed on: the example inputs, in flat order."""
        return self.sample if self.example is None else next(flat(self.original, [self.example], 1))


def prepared(
    model: Model, example_inputs: Any, calibration: Iterable[Any] | None, tell: Tell
) -> tuple[Graph, Sequence[Any]]:
    """The canonical graph, and calibration data that can be read several times."""
    tell("tracing", 0, None)
    if isinstance(model, str | Path):
        model = load_program(Path(model))
    graph = run(CANONICAL, trace(model, example_inputs))
    if calibration is None:
        if example_inputs is None and isinstance(model, ExportedProgram):
            example_inputs = own_inputs(model)
        if example_inputs is None:
            raise CalibrationError(
                "there is neither calibration data nor an example input",
                fix="pass calibration=[...], or example_inputs",
            )
        return graph, [example_inputs]
    if isinstance(calibration, Sequence) and not isinstance(calibration, str | bytes):
        return graph, calibration
    # A generator can be read once, and calibration may need a second pass.
    return graph, [kwargs or args for args, kwargs in batches(calibration)]


def lowered_form(decision: Decision) -> Graph:
    return run((materialize(decision.plan), *SIMPLIFY_QDQ), decision.graph)


def on_reference(job: Job) -> Compiled:
    """Run by the integer reference: slow, exact, and its own proof."""
    job.tell("checking", 0, None)
    graph = lowered_form(job.decision)
    executable = Reference(job.decision.target).lower(graph)
    found = compare(job.original, graph, executable, job.data, job.decision.target)
    ran = executable.execution(job.decision.plan)
    promised = contract(job.decision.plan, ran.layers, ran.stray)
    data = facts(
        job, graph, executable, promised, ran.kernels, found, nodes=(), verdict=None, backend="reference"
    )
    return Compiled(graph=graph, plan=job.decision.plan, executable=executable, data=data)


def on_engine(job: Job) -> Compiled:
    """Lower to ONNX Runtime, hold it to the contract and the reference, then let the speed guard decide."""
    from qcompiler.backends.ort import Ort

    engine = Ort()
    job.tell("lowering", 0, None)
    graph = lowered_form(job.decision)
    quantized = engine.lower(graph, threads=job.threads)
    ran = quantized.execution(job.decision.plan)
    promised = contract(job.decision.plan, ran.layers, ran.stray)
    if job.strict:
        promised.enforce()
    job.tell("comparing with the reference", 0, None)
    found = compare(job.original, graph, quantized, job.data, job.decision.target)
    nodes = quantized.verify(job.sample)
    job.tell("timing", 0, None)
    verdict = judged(job, quantized)
    data = facts(
        job, graph, Reference(job.decision.target).lower(graph), promised, ran.kernels, found, nodes=nodes,
        verdict=verdict, backend="ort",
    )  # fmt: skip
    kept = verdict.executable
    return Compiled(graph=kept.graph, plan=verdict.decision.plan, executable=kept, data=data)


def judged(job: Job, quantized: Any) -> Verdict:
    from qcompiler.backends.ort import Ort

    floating = Ort().lower(job.original, threads=job.threads)
    return guard(
        job.decision, quantized, floating, job.timed,
        lower=lambda decision: Ort().lower(lowered_form(decision), threads=job.threads),
        tick=lambda: job.tell("timing", 1, None),
    )  # fmt: skip


def compare(
    original: Graph, quantized: Graph, executable: Executable, data: Sequence[Any], aim: Target
) -> Distance:
    """Float, reference and engine on the first samples."""
    samples = list(flat(original, data, CHECKED))
    reference = Reference(aim).lower(quantized)
    return distance(
        [evaluate(original, x) for x in samples],
        [reference(x) for x in samples],
        [executable(x) for x in samples],
    )


def facts(
    job: Job, graph: Graph, reference: ReferenceExecutable, promised: Contract, kernels: Mapping[str, int],
    found: Distance, *, nodes: Sequence[Any], verdict: Verdict | None, backend: str,
) -> dict[str, Any]:  # fmt: skip
    """The report's data."""
    from qcompiler.tune.roofline import measure_machine

    decision, sample = job.decision, job.sample
    labels = {layer.node: layer.label for layer in decision.plan.layers}
    quality = evidence.layer_quality(decision, job.original, reference, sample)
    batch = next((x.shape[0] for x in job.timed if isinstance(x, Tensor) and x.dim()), 1)
    machine = measure_machine() if verdict else None
    return {
        "coverage": evidence.coverage(promised, kernels),
        "accuracy": evidence.accuracy(found, nodes, labels),
        "layers": evidence.layers(decision, promised, quality, verdict, machine, batch),
        "speed": evidence.speed(verdict, threads=job.threads, batch=batch) if verdict else None,
        "refused": evidence.refused(decision.graph),
        "tensors": evidence.tensors(decision.plan, decision.ranges),
        "manifest": manifest(job, graph, found, backend),
    }


def manifest(job: Job, graph: Graph, found: Distance, backend: str) -> dict[str, Any]:
    """Everything needed to make the same model again; no clock and no path, so that bytes repeat."""
    from qcompiler.backends.ort.requirements import settings_for

    return {
        "model": job.name,
        "recipe": recipe_to_mapping(job.decision.recipe),
        "target": job.decision.target.name,
        "backend": backend,
        "seed": job.seed,
        "data_hash": data_hash(job.original, job.data),
        "graph_hash": fingerprint(graph),
        "versions": versions(),
        "cpu": {"name": this_cpu().name, "features": list(this_cpu().features)},
        "session": asdict(settings_for(graph, threads=job.threads)),
        "metrics": {
            "sqnr_db": evidence.number(found.sqnr_db),
            "max_lsb": found.max_lsb,
            "agreement": found.agreement,
        },
    }


# ---------------------------------------------------------------- small things


def flat(graph: Graph, data: Iterable[Any], count: int) -> Iterator[list[Any]]:
    for (args, kwargs), _ in zip(batches(data), range(count), strict=False):
        yield flatten_inputs(graph, args, kwargs)


def data_hash(graph: Graph, data: Sequence[Any]) -> str:
    """SHA-256 over the calibration tensors, in order."""
    total = hashlib.sha256()
    for args, kwargs in batches(data):
        for x in flatten_inputs(graph, args, kwargs):
            if isinstance(x, Tensor):
                total.update(
                    f"{x.dtype}{tuple(x.shape)}".encode() + x.detach().contiguous().numpy().tobytes()
                )
    return total.hexdigest()


def versions() -> dict[str, str]:
    found = {"qcompiler": importlib.metadata.version("qcompiler")}
    return found | {name: importlib.metadata.version(name) for name in VERSIONED}


def model_name(model: Model) -> str:
    return str(Path(model).name) if isinstance(model, str | Path) else type(model).__name__


def check_backend(name: str) -> None:
    if name not in BACKENDS:
        raise LoweringError(
            f"there is no backend '{name}'", why=f"known are {', '.join(BACKENDS)}", fix="choose one of these"
        )


def warn_of_other_cpu(saved: Mapping[str, Any]) -> None:
    """Integer kernels without VNNI may saturate: refuse to be silent about another CPU."""
    import warnings

    made_on = set(saved.get("cpu", {}).get("features", ()))
    missing = sorted(name for name in made_on - set(this_cpu().features) if "vnni" in name)
    if missing:
        warnings.warn(
            f"this model was made for a CPU with {', '.join(missing)}, which this one lacks: "
            "results may saturate and differ; compile it here again",
            stacklevel=3,
        )


__all__ = ["Compiled", "compile", "explain", "export_onnx", "load"]
