"""Whole networks on our own kernels: equal to the reference to the last bit."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
import qcompiler.backends.tvm as tvm_backend
from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm import executable as executables
from qcompiler.backends.tvm.isa import AVX2, AVX512_VBMI, AVX512_VNNI, NEON_DOT, NEON_I8MM, Isa, isa_for
from qcompiler.backends.tvm.lower import lower
from qcompiler.backends.tvm.program import Program
from qcompiler.errors import InputError, TargetError
from qcompiler.ir import Graph
from qcompiler.proof import quantized
from qcompiler.target import Target
from qcompiler.target.machine import Cpu
from tests.backends.tvm.networks import TARGET, equal_to_the_reference
from tests.backends.tvm.sets import RUNNABLE, pytestmark, seeds

__all__ = ["pytestmark"]


class Block(nn.Module):
    """Convolutions with a branch around them, which is one itself where shapes change."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        stride, kernel = draw.choice([1, 1, 2]), draw.choice([1, 3, 5])
        middle = draw.choice([8, 17, 32])
        groups = draw.choice([g for g in (1, 2, middle) if middle % g == 0])
        self.first = nn.Conv2d(inputs, middle, 1)
        self.second = nn.Conv2d(
            middle, middle, kernel, stride, kernel // 2, groups=groups, bias=draw.random() < 0.5
        )
        self.third = nn.Conv2d(middle, outputs, draw.choice([1, 3]), padding="same")
        changes = stride > 1 or inputs != outputs
        self.around: nn.Module = nn.Conv2d(inputs, outputs, 1, stride) if changes else nn.Identity()
        self.around_first = draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.third(F.relu6(self.second(F.relu(self.first(x)))))
        return F.relu(self.around(x) + y if self.around_first else y + self.around(x))


class Network(nn.Module):
    """A stem, some blocks, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        widths = [draw.choice([4, 12, 16, 20, 32]) for _ in range(draw.randint(2, 4))]
        self.stem = nn.Conv2d(draw.choice([1, 3, 4]), widths[0], draw.choice([3, 7]), 2, 3)
        self.pools = draw.random() < 0.5
        self.blocks = nn.Sequential(*(Block(draw, a, b) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(widths[-1], draw.choice([5, 10, 33]))
        self.size = draw.randint(17, 40), draw.randint(17, 40)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if self.pools:
            x = F.max_pool2d(x, 3, 2, 1)
        y: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return y

    def images(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.stem.in_channels, *self.size, generator=generator)


@seeds(4, 1)
def test_random_networks(isa: Isa, seed: int) -> None:
    torch.manual_seed(seed)
    network = Network(seed)
    assert "reference" not in equal_to_the_reference(network, network.images, isa).kernels.values()


def test_compile_on_our_own_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network(3).eval()
    compiled = qc.compile(
        network, network.images(1, 0), calibration=[network.images(2, 1)], backend="tvm", threads=1,
        progress=False,
    )  # fmt: skip
    assert compiled.backend.name == "tvm"
    compiled.save(tmp_path / "model.qc")
    x = network.images(2, 5)
    assert torch.equal(qc.load(tmp_path / "model.qc")(x), compiled(x))
    data = compiled.to_dict()
    assert data["accuracy"]["distance"]["max_lsb"] == 0 and data["manifest"]["target"] == "cpu-tvm"


@pytest.mark.parametrize("look_first", [True, False])
def test_what_is_looked_at_and_run_is_lowered_once(monkeypatch: pytest.MonkeyPatch, look_first: bool) -> None:
    lowered = []

    def counted(graph: Graph, target: Target, shapes: Any, *more: Any) -> Program:
        lowered.append(shapes)
        return lower(graph, target, shapes, *more)

    monkeypatch.setattr(executables, "lower", counted)
    torch.manual_seed(0)
    network = Network(3).eval()
    x = network.images(2, 0)
    decision = explain(network, x, calibration=[x], target=TARGET)
    engine = Tvm(TARGET).lower(quantized(decision), threads=1)
    assert isinstance(engine, TvmExecutable)
    looks: list[Callable[[], Any]] = [
        lambda: engine.execution(decision.plan), lambda: engine([x]), lambda: engine.fusions([x]),
    ]  # fmt: skip
    for look in looks if look_first else looks[::-1]:
        look()
    assert len(lowered) == 1
    (ready,) = engine.programs.values()
    assert all(ready.arrays[name] is held for name, held in ready.program.constants.items())


def test_a_profile_is_by_the_clock_that_it_is_given() -> None:
    torch.manual_seed(0)
    network = Network(3).eval()
    x, seconds = network.images(1, 0), itertools.count()
    decision = explain(network, x, calibration=[x], target=TARGET)
    engine = Tvm(TARGET).lower(quantized(decision), threads=1)
    assert isinstance(engine, TvmExecutable)
    steps = Counter(step.node.name for step in engine.ready([x]).program.steps)
    found = engine.profile([x], clock=lambda: float(next(seconds)))
    assert found == {name: 1e6 * count for name, count in steps.items()}  # a second for each step
    assert set(engine.profile([x])) == set(found)


def test_a_network_that_returns_a_map_of_codes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 7, 1), nn.ReLU()).eval()
    x = torch.randn(2, 3, 9, 30)
    graph = quantized(explain(network, x, target=TARGET))
    engine = Tvm(TARGET).lower(graph)
    (found,), (wanted,) = engine([x]), Reference(TARGET).lower(graph)([x])
    assert torch.equal(found, wanted) and found.is_contiguous()
    assert isinstance(engine, TvmExecutable)
    steps = [type(step).__name__ for step in engine.ready([x]).program.steps]
    assert steps == ["Load", "Lend", "Call", "Call", "Call", "Call"]  # in, two convolutions, out


class Tokens(nn.Module):
    """Concatenation along another axis than the channels, and a mean over lines: no kernel takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.first(x)), F.relu(self.second(x))], 1)
        y: Tensor = self.head(both)
        return y


def test_what_only_looks_like_channels_is_left_to_the_reference() -> None:
    torch.manual_seed(0)
    network, x = Tokens().eval(), torch.randn(2, 5, 8)
    graph = quantized(explain(network, x, target=TARGET))
    (found,), (wanted,) = Tvm(TARGET).lower(graph)([x]), Reference(TARGET).lower(graph)([x])
    assert torch.equal(found, wanted)


def test_no_samples_have_empty_results() -> None:
    """As ONNX Runtime has them; where a result is not empty for all that, the reason is said."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(2, 3, 9, 8)
    engine = Tvm(TARGET).lower(quantized(explain(network, x, target=TARGET)))
    (found,) = engine([x[:0]])
    assert (found.shape, found.dtype) == ((0, 4, 5, 4), torch.float32)
    whole = Tvm(TARGET).lower(quantized(explain(Summed(network).eval(), x, target=TARGET)))
    assert whole([x])[0].shape == (4, 5, 4)
    with pytest.raises(InputError, match=r"nothing to compute.*convolution, 0x9x8x3.*pass at least one"):
        whole([x[:0]])


class Summed(nn.Module):
    """Over all samples."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x).sum(0)
        return y


def test_a_cpu_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_backend, "this_cpu", lambda: Cpu(name="old", features=("avx2",)))
    with pytest.raises(TargetError, match="a CPU with avx2 and fma or asimddp"):
        Tvm()
    assert isa_for(("avx2",)) is None
    assert isa_for(("avx2", "fma")) is AVX2
    assert isa_for(("avx2", "fma", "avx512_vnni")) is AVX512_VNNI
    assert isa_for(("avx2", "fma", "avx512vbmi", "avx512_vnni")) is AVX512_VBMI
    assert (isa_for(("asimddp",)), isa_for(("i8mm", "asimddp"))) == (NEON_DOT, NEON_I8MM)


def test_a_person_may_choose_among_the_instruction_sets_of_the_cpu() -> None:
    assert [Tvm(isa=isa.name).isa for isa in RUNNABLE] == list(RUNNABLE)
    assert Tvm().isa is RUNNABLE[0]
    with pytest.raises(TargetError, match=f"does not have it; choose one of {RUNNABLE[0].name}"):
        Tvm(isa="avx512_vbmi" if RUNNABLE[0] in (NEON_DOT, NEON_I8MM) else "neon_dot")
    with pytest.raises(TargetError, match="there is none of that name"):
        Tvm(isa="sse")
