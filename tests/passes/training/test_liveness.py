"""The simulated peak is that of the storages which really exist."""

import copy
import random
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.liveness import Peak, lifetimes, peak, storages, timeline
from qcompiler.training import Training
from qcompiler.training.lower import op_by_op, with_key
from tests.passes.training.steps import Block, Gated, Maps, gradients


class Census(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own, untyped
    """Counts the bytes of all storages that ops have made and that still exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.worst = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        known = {memory._cdata for memory in memories((args, kwargs))}
        for memory in memories(results):
            if memory._cdata not in known:
                watch = StorageWeakRef(memory)  # type: ignore[no-untyped-call]
                self.storages[memory._cdata] = (watch, memory.nbytes())
        gone = [key for key, (watch, _) in self.storages.items() if watch.expired()]  # type: ignore[no-untyped-call]
        for key in gone:
            del self.storages[key]
        self.worst = max(self.worst, sum(size for _, size in self.storages.values()))
        return results


def memories(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class Random(nn.Module):
    """A random program of small ops on matrices, some values read often and some once."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chosen = random.Random(seed)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.steps = [
            (chosen.choice(STEPS), chosen.randint(1, min(place, 3)), chosen.randint(1, min(place, 3)))
            for place in range(1, 12)
        ]

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for place, (step, a, b) in enumerate(self.steps):
            values.append(step(self.layers[place % 4], values[-a], values[-b]))
        result: Tensor = self.layers[0](values[-1] + values[len(values) // 2])
        return result


STEPS: tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], ...] = (
    lambda layer, a, b: cast(Tensor, layer(a)),
    lambda layer, a, b: cast(Tensor, layer(a) * b),
    lambda layer, a, b: a + b,
    lambda layer, a, b: torch.cat(torch.chunk(a, 2, 1)[::-1], 1),
    lambda layer, a, b: (a @ b.t()).softmax(-1) @ a,
    lambda layer, a, b: torch.tanh(a),
    lambda layer, a, b: nn.functional.gelu(a) * 0.5,
    lambda layer, a, b: a.t().relu().t(),
)


def halves_of(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, memory: str) -> Halves:
    """The two graphs of a model, as they are run."""
    seen: list[Halves] = []

    def note(halves: Halves) -> Peak:
        seen.append(copy.deepcopy(halves))
        return peak(halves)

    monkeypatch.setattr("qcompiler.training.session.peak", note)
    run = torch.compile(model, backend=Training(memory=memory, verify=False), fullgraph=True, dynamic=False)
    gradients(model, run, x)
    return seen[-1]


def test_the_simulation_is_what_a_census_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[tuple[nn.Module, Tensor]] = [(Random(seed), torch.randn(32, 32)) for seed in range(8)]
    models += [(Block(), torch.randn(2, 32, 64)), (Gated(), torch.randn(4, 32, 32))]
    models += [(Maps(), torch.randn(4, 3, 16, 16))]
    for place, (model, x) in enumerate(models):
        torch._dynamo.reset()
        halves = halves_of(model, x, monkeypatch, "keep" if place % 4 == 0 else "act4")
        step = timeline(halves, inside=lambda node: 0).peak()
        for half in (halves.forward, halves.backward):
            with_key(half)
            given = half.graph.find_nodes(op="placeholder")
            nodes = list(half.graph.nodes)
            touched = [storages([node, *node.all_input_nodes]) for node in nodes]
            expected = lifetimes(nodes, touched, storages(given)).max()
            inputs = [made(node.meta["val"]) for node in given]
            with Census() as census:
                op_by_op(half)(inputs)
            assert census.worst == expected, (model, half is halves.forward)
        assert counted(halves) == (step.bytes, step.left), model


def counted(halves: Halves) -> tuple[int, int]:
    """Bytes at the worst moment of a whole step, and at its end, by a caller who holds the results."""
    inputs = halves.forward.graph.find_nodes(op="placeholder")
    primals, keys = [[x for x in inputs if x.name.startswith(kind)] for kind in ("primals", "value_of")]
    arrivals = [halves.received(value) for value in halves.crossing]
    others = [x for x in halves.backward.graph.find_nodes(op="placeholder") if x not in arrivals]
    given = [made(node.meta["val"]) for node in primals]
    with Census() as census:
        returned = list(op_by_op(halves.forward)([*given, *(made(node.meta["val"]) for node in keys)]))
        results, handed = returned[: halves.outputs], returned[halves.outputs :]
        del returned
        handed += [made(node.meta["val"]) for node in others]
        gradients = op_by_op(halves.backward)(handed)
        torch.empty(0)  # for the census to look once more
    assert len(results) == halves.outputs
    assert any(gradient is not None for gradient in gradients)
    return census.worst, sum(size for _, size in census.storages.values())


def made(fake: Tensor) -> Tensor:
    """A tensor as a graph was traced with it."""
    with unset_fake_temporarily():
        x = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype)
        return x.zero_()
