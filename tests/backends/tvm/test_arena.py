"""Planes in shared memory: never two that are in use at once, and a border is never another's."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch
from torch.fx import Graph as FxGraph

from qcompiler.api import explain
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.arena import memory, mould, shared
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.program import Call, Program, Step, Store
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET
from tests.backends.tvm.test_conv import pytestmark
from tests.backends.tvm.test_lower import Network

__all__ = ["pytestmark"]
NODE = FxGraph().placeholder("x")


def drawn(seed: int) -> Program:
    """Steps that each write one store from some of the last ones."""
    draw = random.Random(seed)
    stores: dict[str, Store] = {}
    steps: list[Step] = []
    for turn in range(draw.randint(1, 30)):
        border, size = draw.choice([0, 0, 1]), draw.randint(1, 3)
        plane = Plane(images=1, height=size, width=size, channels=16, pitch=16, border=border)
        names = [*stores]
        read = draw.sample(names[-4:], min(len(names), draw.randint(0, 2)))
        shares = names[-1] if names and draw.random() < 0.2 else ""
        stores[f"s{turn}"] = Store(plane=plane, fill=draw.choice([0, 7]) if border else 0, shares=shares)
        steps.append(Call(node=NODE, function="f", arguments=(*read, "constant", f"s{turn}")))
    return Program(stores=stores, constants={}, functions=(), steps=tuple(steps), shapes={}, kernels={})


def root(program: Program, name: str) -> str:
    return root(program, program.stores[name].shares) if program.stores[name].shares else name


@pytest.mark.parametrize("seed", range(40))
def test_what_is_in_use_at_once_lies_apart(seed: int) -> None:
    program = drawn(seed)
    rooms = shared(program)
    turns: dict[str, list[int]] = defaultdict(list)
    for turn, step in enumerate(program.steps):
        for name in step.memory:
            if name in program.stores:
                turns[root(program, name)].append(turn)
    for first, used in turns.items():
        for second, also in turns.items():
            if first < second and rooms[first] == rooms[second]:
                assert max(used) < min(also) or max(also) < min(used)
                assert mould(program.stores[first]) == mould(program.stores[second])
    assert all(rooms[name] == rooms[root(program, name)] for name in program.stores)


def test_a_network_lies_in_less_than_all_of_its_planes() -> None:
    torch.manual_seed(0)
    network = Network(3).eval()
    graph = quantized(explain(network, network.images(1, 0), target=TARGET))
    engine = Tvm(TARGET).lower(graph)
    assert isinstance(engine, TvmExecutable)
    x = network.images(1, 2)
    program = engine.ready([x]).program
    assert len(set(shared(program).values())) < len(program.stores)
    for name, array in memory(program).items():
        border = program.stores[name].plane.border
        assert not border or array[0] == program.stores[name].fill


@pytest.mark.parametrize("layout", ["float64", "strided", "unaligned", "gradient"])
def test_inputs_of_any_layout(layout: str) -> None:
    torch.manual_seed(0)
    network = Network(3).eval()
    graph = quantized(explain(network, network.images(1, 0), target=TARGET))
    engine = Tvm(TARGET).lower(graph)
    x = network.images(1, 2)
    given = {
        "float64": x.double(),
        "strided": x.contiguous(memory_format=torch.channels_last),
        "unaligned": torch.cat([torch.zeros(1), x.reshape(-1)])[1:].view(x.shape),
        "gradient": x.clone().requires_grad_(),
    }[layout]
    assert torch.equal(engine([given])[0], engine([x])[0])
