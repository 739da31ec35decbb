"""Ranges at run time where they serve: measured error and time, one way for all linears that read a value."""

import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.api import explain
from qcompiler.passes.decide import Decision
from qcompiler.passes.run_time import Trade, trades
from qcompiler.target import find_target

RECIPE = {"base": "int8-mixed", "smooth": None, "bias_correction": False}


class Two(nn.Module):
    """Linears on an input whose size changes from batch to batch, and on one that is always alike."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.loud, self.also, self.even = (nn.Linear(16, width) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total: Tensor = self.loud(x) + self.also(x).tanh() + self.even(y)
        return total


def batches() -> list[tuple[Tensor, Tensor]]:
    sizes = (0.05, 0.1, 0.2, 20.0)
    return [(size * torch.randn(8, 16), torch.rand(8, 16) * 2 - 1) for size in sizes]


def decided(width: int = 1024) -> Decision:
    data = batches()
    return explain(Two(width).eval(), data[0], calibration=data, recipe=RECIPE)


def test_what_varies_between_batches_takes_its_range_at_run_time() -> None:
    decision = decided()
    values = {value.value: value for value in decision.plan.values}
    assert {name: value.dynamic for name, value in values.items()} == {"x": True, "y": False}
    assert len(values["x"].readers) == 2
    notes = {n.node: n for n in decision.graph.notes if n.rule == "dynamic-where-better"}
    assert notes["x"].outcome == "applied" and notes["y"].outcome == "refused"
    assert "dB with a calibrated range" in notes["y"].reason
    assert notes["whole graph"].outcome == "applied"


def test_a_linear_that_is_called_as_another_node_and_one_that_is_told_are_left_alone() -> None:
    """The node of the first linear has the name of the module of the second."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.linear = nn.Linear(16, 1024), nn.Linear(1024, 1024)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear((50 * self.first(x)).sin())  # always from -1 to 1
            return y

    data = [size * torch.randn(8, 16) for size in (0.05, 0.1, 0.2, 20.0)]
    found = explain(Named().eval(), data[0], calibration=data, recipe=RECIPE)
    assert [(value.value, value.dynamic) for value in found.plan.values] == [("x", True), ("sin", False)]
    told = {**RECIPE, "overrides": [{"pattern": "first", "dynamic": False}]}
    kept = explain(Named().eval(), data[0], calibration=data, recipe=told)
    assert not any(value.dynamic for value in kept.plan.values)


def test_a_narrow_linear_does_not_pay_for_another_pass() -> None:
    """8 products per element, where finding the range costs 9."""
    assert not any(value.dynamic for value in decided(width=8).plan.values)


def test_the_figures_of_a_trade() -> None:
    data = batches()
    static = explain(
        Two().eval(), data[0], calibration=data, recipe={**RECIPE, "dynamic_where_better": False}
    )
    samples = [list(batch) for batch in data]
    weighed = trades(static.graph, static.plan, static.recipe, find_target("cpu"), samples)
    found = {trade.value.value: trade for trade in weighed}
    assert found["x"].time == 9 / 2048 and found["y"].time == 9 / 1024
    assert found["x"].pays and not found["y"].pays
    gain = 3.0
    near = Trade(value=found["x"].value, calibrated_db=30.0, run_time_db=30.0 + gain, time=0.03)
    assert not near.pays


def test_compiled_it_runs_in_both_ways_and_equals_the_reference() -> None:
    data = batches()
    compiled = qc.compile(
        Two().eval(), data[0], calibration=data, recipe=RECIPE, backend="reference", progress=False
    )
    assert (
        sorted(layer.kernel for layer in compiled.plan.layers if layer.op == "linear")
        == ["MatMulIntegerToFloat"] * 3
    )
    from qcompiler.backends.ort import Ort

    engine = Ort().lower(compiled.graph, threads=1)
    for x in data:
        torch.testing.assert_close(engine(x), compiled.executable(x), rtol=1e-5, atol=1e-4)
    assert all(node.max_lsb == 0 for node in engine.verify(data[0]))
