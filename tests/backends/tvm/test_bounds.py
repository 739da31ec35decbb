"""Kernels of floats are verified: all of them are looked at, and wrong numbers are seen."""

from __future__ import annotations

from collections import Counter

import pytest
from torch import Tensor

from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET
from tests.backends.tvm.sets import pytestmark
from tests.backends.tvm.test_prompt import prompt

__all__ = ["pytestmark"]
FLOATS = {"norm": 5, "rotary": 4, "float attention": 2, "activation": 2}


def lowered(recipe: str) -> tuple[Decision, TvmExecutable, tuple[Tensor]]:
    decision, data = prompt(recipe, 5)
    engine = Tvm(TARGET).lower(quantized(decision), threads=1)
    assert isinstance(engine, TvmExecutable)
    return decision, engine, data[3]


@pytest.mark.parametrize("recipe", ["w4a16", "int8-dynamic"])
def test_every_kernel_of_floats_is_verified(recipe: str) -> None:
    decision, engine, x = lowered(recipe)
    checked = engine.verify(x)
    assert all(node.max_lsb == 0 for node in checked)
    linears = {"few-bit linear": 15} if recipe == "w4a16" else {"convolution": 15}
    assert Counter(node.kernel for node in checked) == FLOATS | linears
    left = set(engine.execution(decision.plan).kernels) - {node.kernel for node in checked}
    assert left == ({"range"} if recipe == "int8-dynamic" else set())


@pytest.mark.parametrize(
    ("constant", "kernel"), [(".gain", "norm"), (".weights", "few-bit linear"), (".rows", "rotary")]
)
def test_a_kernel_that_reads_something_else_is_found(constant: str, kernel: str) -> None:
    _, engine, x = lowered("w4a16")
    (name, *_) = [name for name in engine.ready(x).arrays if name.endswith(constant)]
    held = engine.ready(x).arrays[name]
    held[:] = held * 1.01 if constant == ".gain" else held[::-1].copy()
    wrong = [node for node in engine.verify(x) if node.max_lsb > 0]
    assert {node.kernel for node in wrong} == {kernel}
