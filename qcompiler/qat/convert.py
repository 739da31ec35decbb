"""From a trained module back into the compiler: PTQ's plan with the scales that training has found."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from qcompiler.api import Compiled, assembled, raced, written_onnx
from qcompiler.artifact import check_onnx_file
from qcompiler.backends import AUTO, check_threads, find_backend
from qcompiler.ir import Graph
from qcompiler.ir.edit import with_tensors
from qcompiler.job import Job
from qcompiler.passes.check import Contract
from qcompiler.passes.decide import Decision, planned
from qcompiler.passes.plan import check_accumulators
from qcompiler.passes.qat.learned import Learned, with_scales
from qcompiler.progress import silent
from qcompiler.proof import prove, quantized
from qcompiler.qat.module import QATModule
from qcompiler.qat.quantizers import LearnedWeight
from qcompiler.steps import Steps


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A trained model as `compile` decides one: the float graph, its plan, and the data to prove it on."""

    job: Job
    decision: Decision

    @cached_property
    def graph(self) -> Graph:
        """The quantized graph."""
        return quantized(self.decision)

    def compile(
        self,
        *,
        backend: str = AUTO,
        strict: bool = False,
        threads: int | None = None,
        seed: int = 0,
        database: str | Path | None = None,
        progress: bool = True,
    ) -> Compiled:
        """Lower it, prove it against the reference, and return it ready to call; as `qcompiler.compile`.

        backend: one of those that the target was prepared for. The speed guard may keep layers in float.
        """
        check_threads(threads)
        engine = find_backend(backend, self.decision.target, database=database)
        with Steps(visible=progress) as steps, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            proof = prove(self.job, self.decision, engine, threads=threads, strict=strict, tell=steps.tell)
            race = raced(self.job, proof, engine, threads=threads, strict=strict, tell=steps.tell)
            return assembled(self.job, proof, race, engine, threads=threads, seed=seed)

    def export_onnx(
        self, path: str | Path, *, opset: int | None = None, portable: bool = True, strict: bool = False
    ) -> Contract:
        """Write it as QDQ ONNX once it is proven; as `qcompiler.export_onnx`."""
        path = Path(path)
        check_onnx_file(path)
        return written_onnx(
            self.job, self.decision, path, opset=opset, portable=portable, strict=strict, tell=silent
        )


def convert_qat(module: QATModule) -> Converted:
    """The integer graph of a module in training, with its parameters and scales as they are now.

    The module stays as it is and can be trained on. It is calibrated anew, for the report and for values that
    have no quantizer. Raises PlanError where an accumulator could overflow with the weights as trained.
    """
    prepared = module._prepared
    start, graph = prepared.decision, with_tensors(prepared.job.original, module.folded())
    job = replace(prepared.job, original=graph)
    again = planned(graph, job.data, start.recipe, start.target, silent)
    learned = learned_scales(module)
    plan = with_scales(again.plan, learned)
    check_accumulators(plan, graph)
    return Converted(job=job, decision=replace(again, plan=plan, learned=learned))


def learned_scales(module: QATModule) -> Learned:
    """The scales that the module rounds with; weights whose scales follow from them are not named."""
    heads = module.value_quantizers()
    values = {}
    for spec in module._prepared.decision.plan.values:
        if not spec.dynamic:
            params = heads[spec.shared or spec.value].params
            values[spec.value] = float(params.scale), int(params.zero_point)
    weights = {}
    for name, planned_weight in module._prepared.network.weights.items():
        quantizer = module.get_submodule(name)
        if isinstance(quantizer, LearnedWeight):
            scales = quantizer.params(quantizer.scale).scale
            weights[planned_weight.layer] = tuple(scales.flatten().tolist())
    return Learned(values=values, weights=weights)
