"""Few-bit weights on a model that has learned something: perplexity on text that it has not seen.

The model is trained here, with half the layers, context and steps of the one that docs/weights.md shows: its
weights are used up as well, and it takes a sixth. All figures are over the same held-out windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends import AUTO, find_backend
from qcompiler.backends.reference import Reference
from qcompiler.ir import Draft, evaluate
from qcompiler.job import Job, take
from qcompiler.models.bundle import Bundle
from qcompiler.models.charlm import SHAPE, bundle, corpus, train
from qcompiler.numerics import fake_quantize
from qcompiler.passes.abreast import Moments, run_abreast
from qcompiler.passes.decide import Decision, decide
from qcompiler.passes.smooth import weight_of
from qcompiler.passes.weights import weight_params
from qcompiler.progress import silent
from qcompiler.proof import prove, quantized
from qcompiler.recipe import find_recipe
from qcompiler.target import find_target

CPU = find_target("cpu")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The trained model, traced, and its perplexity in float."""

    bundle: Bundle
    job: Job
    perplexity: float

    def decided(self, recipe: Any) -> Decision:
        return decide(self.job.original, self.job.data, find_recipe(recipe), CPU)

    def measured(self, run: Any) -> float:
        return self.bundle.metric(run)["perplexity"]

    def simulated(self, decision: Decision) -> float:
        graph = quantized(decision)
        return self.measured(lambda tokens: evaluate(graph, [tokens]))


@pytest.fixture(scope="session")
def subject() -> Subject:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose time on a second one
    text = corpus()
    model = train(text.train, shape=replace(SHAPE, depth=2, positions=64), steps=300)
    found = bundle(model, text, calibration=8, samples=128)
    torch.set_num_threads(threads)
    job = take(found.module, found.example_inputs, found.calibration, silent)
    return Subject(bundle=found, job=job, perplexity=found.metric(found.module)["perplexity"])


def test_the_model_has_learned_its_language(subject: Subject) -> None:
    assert subject.perplexity < 7  # of 128 characters; about 20 if it knew their frequencies alone


@pytest.mark.parametrize(
    ("recipe", "bar"),
    [("w8a16", 1.003), ({"base": "w4a16", "weight_method": "best"}, 1.02), ("w4a16-best", 1.02)],
    ids=["int8", "int4", "uint4"],
)
def test_the_engine_keeps_the_perplexity_and_agrees_with_the_reference(
    subject: Subject, recipe: Any, bar: float
) -> None:
    """Proven and run on the engine; `compile` may ship float instead, where the guard finds that faster."""
    decision = subject.decided(recipe)
    backend = find_backend(AUTO, CPU)
    proof = prove(subject.job, decision, backend, threads=1, strict=True, tell=silent)
    assert proof.kernels["MatMulNBits"] == 15  # seven linears in each of two layers, and the head
    reference = Reference(CPU).lower(proof.graph)
    engine = subject.measured(lambda tokens: proof.executable([tokens]))
    assert engine < bar * subject.perplexity
    assert engine == pytest.approx(subject.measured(lambda tokens: reference([tokens])), rel=1e-4)


ROWS = {"base": "w4a16", "group_size": 64}  # one scale per row of most layers: here rounding hurts
PLAIN = {**ROWS, "weight_method": "nearest", "weight_observer": "minmax"}


@pytest.fixture(scope="session")
def plain(subject: Subject) -> Decision:
    return subject.decided(PLAIN)


@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=pytest.mark.thorough) for name in ("gptq", "awq")), "best"]
)
def test_care_beats_rounding_to_nearest(subject: Subject, plain: Decision, method: str) -> None:
    """In perplexity, and in the error that all layers together make on held-out text."""
    careful = subject.decided({**ROWS, "weight_method": method})
    assert subject.perplexity < subject.simulated(careful) < subject.simulated(plain)
    held_out = [list(inputs) for inputs in subject.bundle.metric.inputs()[:2]]
    assert layer_errors(careful, held_out) < 0.9 * layer_errors(plain, held_out)


def layer_errors(decision: Decision, batches: Sequence[Sequence[Tensor]]) -> float:
    """sum over layers of ||(W - W') X||^2 / ||W X||^2, X as the float layers before make it."""
    draft, total = Draft(decision.graph), 0.0
    specs = {spec.layer: spec for spec in decision.plan.weights}

    def reached(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        nonlocal total
        found, weight, moments = decision.rounded.get(node.name), weight_of(draft, node), Moments.of(inputs)
        exact = weight if found is None else found.before
        rounded = fake_quantize(weight, weight_params(weight, specs[node.name]))
        total += moments.power(exact - rounded) / moments.power(exact)
        return exact

    run_abreast(decision.graph, batches, reached)
    return total
