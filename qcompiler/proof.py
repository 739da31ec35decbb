"""Lower a decision and prove it: the contract, the distance to the reference, and every kernel by itself.

prove : (Job, Decision, Backend) -> Proof        raises ContractError where a promise does not hold
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qcompiler import evidence
from qcompiler.backends.base import Backend, Engine, Executable, NodeDistance, Travelling, Weighing
from qcompiler.backends.guard import Verdict
from qcompiler.backends.reference import Reference
from qcompiler.errors import ContractError, InputError
from qcompiler.ir import Graph, evaluate
from qcompiler.job import Job
from qcompiler.passes.check import Contract, Distance, contract, distance
from qcompiler.passes.decide import Decision
from qcompiler.passes.materialize import materialize
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.progress import Tell
from qcompiler.rewrite import run
from qcompiler.target import Target

CHECKED = 4  # samples on which the engine is compared with the reference


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A lowered decision with everything that was found out about it."""

    decision: Decision
    executable: Executable
    contract: Contract
    kernels: Mapping[str, int]
    distance: Distance
    nodes: Sequence[NodeDistance]
    remarks: Sequence[str] = ()

    @property
    def graph(self) -> Graph:
        return self.executable.graph


def quantized(decision: Decision) -> Graph:
    """The graph with Q/DQ as the decision's plan says."""
    return run((materialize(decision.plan), *SIMPLIFY_QDQ), decision.graph)


def prove(
    job: Job, decision: Decision, backend: Backend, *, threads: int | None, strict: bool, tell: Tell
) -> Proof:
    """Lower, read back what executes, and compare with the reference end to end and kernel by kernel."""
    tell("lowering", 0, None)
    executable = backend.lower(quantized(decision), threads=threads)
    return proven(job, decision, executable, strict=strict, tell=tell)


def proven(job: Job, decision: Decision, executable: Executable, *, strict: bool, tell: Tell) -> Proof:
    """Prove what is lowered already."""
    ran = executable.execution(decision.plan)
    promised = contract(decision.plan, ran.layers, ran.stray)
    if strict:
        promised.enforce()
    tell("comparing with the reference", 0, None)
    found = compare(job, executable, decision.target)
    found.enforce()
    engine = at_home(executable) or executable
    nodes = engine.verify(job.samples(1)[0]) if isinstance(engine, Engine) else ()
    enforce_nodes(nodes, decision)
    return Proof(
        decision=decision, executable=executable, contract=promised, kernels=ran.kernels, distance=found,
        nodes=nodes, remarks=ran.remarks,
    )  # fmt: skip


def at_home(executable: Executable) -> Engine | None:
    """What times an executable where it is meant to run; None where that cannot be, or nothing is timed."""
    if isinstance(executable, Travelling):
        return executable.at_home()
    return executable if isinstance(executable, Engine) else None


def compare(job: Job, executable: Executable, target: Target) -> Distance:
    """Float, reference and engine on the first samples."""
    samples = job.samples(CHECKED)
    reference = Reference(target).lower(executable.graph)
    wanted = [evaluate(job.original, x) for x in samples]
    found = distance(wanted, [reference(x) for x in samples], [executable(x) for x in samples])
    if math.isnan(found.max_lsb):
        check_comparable(wanted)
    return found


def check_comparable(wanted: Sequence[Sequence[Any]]) -> None:
    """InputError where nothing can be as near to a model's own results as is allowed: they are no numbers."""
    floats = [y for outputs in wanted for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]
    lost = next((y for y in floats if not bool(y.isfinite().all())), None)
    if lost is not None:
        raise InputError(
            "the model computes NaN or inf on the samples that it is compared on",
            why=f"some of its own results in {str(lost.dtype).removeprefix('torch.')} are",
            fix="give other data, or convert the model to a type of more range",
        )


def enforce_nodes(nodes: Sequence[NodeDistance], decision: Decision) -> None:
    """Raise ContractError for a kernel that is further from its formula than its row allows."""
    outside = next((node for node in nodes if not node.max_lsb <= node.allowed), None)
    if outside is not None:
        layer = decision.plan.layer(outside.node)
        raise ContractError(
            f"the kernel {outside.kernel} is {outside.max_lsb:.3g} LSB from the reference",
            node=layer.label if layer else outside.node,
            why=f"{outside.allowed} are allowed on the same inputs",
            fix="report it with the CPU and the version of the engine; override the layer to float meanwhile",
        )


def facts(job: Job, proof: Proof, verdict: Verdict | None, *, threads: int | None) -> dict[str, Any]:
    """The report's data, without the manifest."""
    from qcompiler.tune.roofline import measure_machine

    decision = proof.decision
    labels = {layer.node: layer.label for layer in decision.plan.layers}
    reference = Reference(decision.target).lower(proof.graph)
    quality = evidence.layer_quality(decision, job.original, reference, job.samples(1)[0])
    machine = measure_machine() if verdict else None
    observed = any(value.value in decision.ranges for value in decision.plan.values)
    accuracy = evidence.accuracy(proof.distance, proof.nodes, labels, proof.kernels)
    lowered = proof.executable.fusions(job.timed) if isinstance(proof.executable, Weighing) else ()
    return {
        "coverage": {**evidence.coverage(proof.contract, proof.kernels), "remarks": list(proof.remarks)},
        "accuracy": {**accuracy, "ranges_from_example": observed and not job.has_data},
        "layers": evidence.layers(decision, proof.contract, quality, verdict, machine, job.batch),
        "speed": evidence.speed(verdict, threads=threads, batch=job.batch) if verdict else None,
        "refused": evidence.refused(proof.graph),
        "fusions": evidence.fusions(decision, lowered),
        "tensors": evidence.tensors(decision.plan, decision.ranges),
    }
