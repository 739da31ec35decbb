"""A prompt through a decoder that returns its cache: rotary positions and attention on kernels of our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable, threads
from qcompiler.backends.tvm.library import write_library
from qcompiler.backends.tvm.library.run import Model, read
from qcompiler.backends.tvm.program import Compute, Refer
from qcompiler.models.decoder import Decoder, Growing, Shape
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET, floats, going_on
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]
aten = torch.ops.aten
qc = torch.ops.qcompiler


def tokens(seed: int, length: int) -> Tensor:
    return torch.randint(50, (1, length), generator=torch.Generator().manual_seed(seed))


def prompt(recipe: str, length: int) -> tuple[Decision, list[tuple[Tensor]]]:
    """A small decoder as decided, and prompts."""
    torch.manual_seed(0)
    shape = Shape(vocabulary=50, width=64, hidden=96, depth=2, heads=4, kv_heads=2, positions=32)
    model, data = Growing(Decoder(shape)).eval(), [(tokens(seed, length),) for seed in range(4)]
    return explain(model, data[0], calibration=data, recipe=recipe, target=TARGET), data


@pytest.mark.parametrize(
    ("recipe", "kernels"),
    [
        ("int8-dynamic", {"rotary": 4, "float attention": 2, "norm": 5, "activation": 2, "range": 9}),
        # Norms and gates make codes as they go; of what attention reads, values are left.
        ("int8", {"rotary": 4, "attention": 2, "norm": 5, "activation": 2, "encode": 2}),
    ],
)
@pytest.mark.parametrize("length", [1, 21])
def test_a_prompt(recipe: str, kernels: dict[str, int], length: int) -> None:
    decision, data = prompt(recipe, length)
    graph = quantized(decision)
    engine, reference = Tvm(TARGET).lower(graph), Reference(TARGET).lower(graph)
    assert isinstance(engine, TvmExecutable)
    assert all(map(torch.equal, engine(data[3]), going_on(reference, *floats(engine, data[3]), data[3])))
    assert all(each.max_lsb == 0 for each in engine.verify(data[3]))
    ran = engine.execution(decision.plan).kernels
    assert {name: ran[name] for name in kernels} == kernels
    steps = engine.ready(data[3]).program.steps
    assert not any(isinstance(step, Refer) for step in steps)
    left = {step.node.target for step in steps if isinstance(step, Compute)}
    assert left <= {aten.sym_size.int, aten.view.default, aten.transpose.int, qc.dequantize.default}


def test_threads_divide_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows among them, and heads; what was returned stays as it was when another prompt follows."""
    monkeypatch.setattr(threads, "WORTH_SHARING", 0)
    decision, data = prompt("int8-dynamic", 21)
    graph = quantized(decision)
    alone, together = (Tvm(TARGET).lower(graph, threads=count) for count in (1, 2))
    first, found = alone(data[0]), together(data[0])
    again = [value.clone() for value in first]
    alone(data[1])
    assert all(map(torch.equal, first, found)) and all(map(torch.equal, first, again))


def test_a_prompt_as_a_library(tmp_path: Path) -> None:
    decision, data = prompt("int8-dynamic", 5)
    engine = Tvm(TARGET).lower(quantized(decision), threads=1)
    assert isinstance(engine, TvmExecutable)
    folder = write_library(engine, list(data[0]), tmp_path / "library").folder
    assert sum(step["do"] == "lend" for step in read(folder)["steps"]) == 4  # the cache; logits have gaps
    for found, wanted in zip(Model(folder)(data[1][0].numpy()), engine(data[1]), strict=True):
        assert np.array_equal(found, wanted.numpy())
