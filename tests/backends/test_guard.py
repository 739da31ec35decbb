"""The speed guard's choices, on engines whose speed is made up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends import guard as guards
from qcompiler.backends.base import Execution
from qcompiler.backends.guard import MARGIN, guard, losing_regions, regions
from qcompiler.ir import Graph
from qcompiler.passes.decide import Decision
from qcompiler.plan import Plan
from qcompiler.tune.measure import Timing, interleave


@dataclass
class Fake:
    """An engine that takes as long as it is told to; `calls` counts its runs."""

    seconds: float
    nodes: dict[str, float] = field(default_factory=dict)
    calls: int = 0

    @property
    def graph(self) -> Graph:
        raise NotImplementedError

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        self.calls += 1
        return []

    def execution(self, plan: Plan) -> Execution:
        return Execution(layers=())

    def verify(self, inputs: Sequence[Tensor]) -> list[Any]:
        return []

    def profile(self, inputs: Sequence[Tensor]) -> Mapping[str, float]:
        return self.nodes


class TwoRegions(nn.Module):
    """Two convolutions on codes, a float op, and a linear: two regions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.second(torch.relu(self.first(x))))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def decision() -> Decision:
    return explain(TwoRegions().eval(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing that believes what a fake says of itself."""

    def believed(contenders: Mapping[str, Any], *, tick: Any) -> Timing:
        tick()
        return Timing(seconds={name: (run.func.seconds,) * 3 for name, run in contenders.items()})

    monkeypatch.setattr(guards, "interleave", believed)


FLOAT = {"conv2d": 10.0, "conv2d_1": 10.0, "linear": 5.0, "tanh": 1.0}
GOOD = {"conv2d": 4.0, "conv2d_1": 4.0, "linear": 2.0, "tanh": 1.0}
# The linear's input costs more to quantize than its kernel saves.
LINEAR_LOSES = GOOD | {"squeeze_dims_q": 6.0}


def judge(decision: Decision, *, quantized: Fake, floating: Fake, partly: Fake | None = None) -> Any:
    def lower(fewer: Decision) -> Fake:
        assert partly is not None, "no region loses, so nothing should be lowered again"
        return partly

    return guard(decision, quantized, floating, [], lower)


def ratio(verdict: Any) -> float:
    """Float time over the time of what was kept."""
    return float(verdict.timing.ratio("float", verdict.kept))


@pytest.mark.usefixtures("told")
def test_a_faster_quantized_model_is_kept_whole(decision: Decision) -> None:
    quantized = Fake(1.0, GOOD)
    verdict = judge(decision, quantized=quantized, floating=Fake(2.0, FLOAT))
    assert (verdict.kept, verdict.executable, verdict.given_up) == ("quantized", quantized, ())
    assert verdict.decision is decision
    assert ratio(verdict) == 2.0


@pytest.mark.usefixtures("told")
def test_a_slower_quantized_model_gives_way_to_float(decision: Decision) -> None:
    floating = Fake(1.0, FLOAT)
    verdict = judge(decision, quantized=Fake(1.25, GOOD), floating=floating)
    assert (verdict.kept, verdict.executable, ratio(verdict)) == ("float", floating, 1.0)
    (loss,) = verdict.given_up
    assert set(loss.layers) == {"first/conv2d", "second/conv2d_1", "head/linear"}
    assert "0.80x" in loss.why


@pytest.mark.usefixtures("told")
def test_a_losing_region_alone_goes_back_to_float(decision: Decision) -> None:
    partly = Fake(0.8)
    verdict = judge(decision, quantized=Fake(1.0, LINEAR_LOSES), floating=Fake(2.0, FLOAT), partly=partly)
    assert (verdict.kept, verdict.executable) == ("partly", partly)
    (loss,) = verdict.given_up
    assert loss.layers == ("head/linear",)
    assert "against 5 us in float" in loss.why
    modes = {layer.node: layer.precision for layer in verdict.decision.plan.layers}
    assert (modes["conv2d"], modes["conv2d_1"], modes["linear"]) == ("int8", "int8", "float")
    layer = verdict.decision.plan.layer("linear")
    assert layer is not None and layer.why == loss.why


@pytest.mark.usefixtures("told")
def test_taking_a_region_back_must_pay(decision: Decision) -> None:
    """Layout changes move: a region that loses by itself may still be cheaper within the whole."""
    quantized = Fake(1.0, LINEAR_LOSES)
    verdict = judge(decision, quantized=quantized, floating=Fake(2.0, FLOAT), partly=Fake(1.1))
    assert (verdict.kept, verdict.executable, verdict.given_up) == ("quantized", quantized, ())
    assert verdict.decision is decision


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("quantized", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("partly", [0.4, 0.9, 1.2])
def test_what_is_kept_is_never_slower_than_float(decision: Decision, quantized: float, partly: float) -> None:
    verdict = judge(
        decision, quantized=Fake(quantized, LINEAR_LOSES), floating=Fake(1.0, FLOAT), partly=Fake(partly)
    )
    assert verdict.executable.seconds <= 1.0
    assert verdict.executable.seconds == min(1.0, quantized, partly)
    assert ratio(verdict) >= 1.0


def test_regions_are_joined_by_codes(decision: Decision) -> None:
    """conv -> conv share codes; the linear is behind a float op."""
    found = {tuple(layer.node for layer in region) for region in regions(decision)}
    assert found == {("conv2d", "conv2d_1"), ("linear",)}


@pytest.mark.parametrize(
    ("linear", "loses"), [(5.0, False), (5.0 * (1 + MARGIN) - 0.01, False), (5.0 * (1 + MARGIN) + 0.2, True)]
)
def test_a_region_loses_beyond_the_margin(decision: Decision, linear: float, loses: bool) -> None:
    found = losing_regions(decision, FLOAT, GOOD | {"linear": linear})
    assert [loss.layers for loss in found] == ([("linear",)] if loses else [])


def test_a_small_loss_is_left_alone(decision: Decision) -> None:
    """A tenth of a microsecond in a millisecond is not worth another lowering."""
    assert not losing_regions(decision, FLOAT | {"linear": 0.1}, GOOD | {"linear": 0.2, "tanh": 1000.0})


# ---------------------------------------------------------------- timing


class Clock:
    """A clock that only moves when someone works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def working(self, seconds: float) -> Any:
        def work() -> None:
            self.now += seconds

        return work


def test_interleaved_ratios() -> None:
    clock, ticks = Clock(), list[int]()
    timing = interleave(
        {"slow": clock.working(0.03), "fast": clock.working(0.01)}, rounds=5, clock=clock,
        tick=lambda: ticks.append(1),
    )  # fmt: skip
    assert timing.median("slow") == pytest.approx(0.03)
    assert timing.ratio("slow", "fast") == pytest.approx(3)
    assert len(timing.ratios("slow", "fast")) == len(ticks) == 5


def test_rounds_rotate_the_order() -> None:
    clock, order = Clock(), list[str]()

    def working(name: str) -> Any:
        def work() -> None:
            order.append(name)
            clock.now += 1.0

        return work

    interleave({name: working(name) for name in "abc"}, rounds=3, clock=clock)
    assert "".join(order[-9:]) == "abcbcacab"
