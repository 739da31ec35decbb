"""Scales that training has found, in plans and weights; and constants that are traced back to parameters."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from qcompiler.errors import GraphError
from qcompiler.numerics import IntFormat
from qcompiler.passes.qat.learned import Learned, with_scales
from qcompiler.passes.qat.lineage import Emitter, Recorder
from qcompiler.passes.weights import has_free_scales, weight_params
from qcompiler.plan import Plan, ValueSpec, WeightSpec, plan_from_json, plan_to_json

WEIGHT = WeightSpec(layer="fc", argument="weight", format="int4", axis=0)
PLAN = Plan(
    recipe="r", target="t", weights=(WEIGHT,),
    values=(
        ValueSpec(value="x", label="x", format="uint8", why="", scale=1.0, zero_point=3),
        ValueSpec(value="y", label="y", format="uint8", why="", scale=1.0),
    ),
)  # fmt: skip


def test_a_plan_takes_the_scales_it_is_given_and_keeps_the_others() -> None:
    found = with_scales(PLAN, Learned(values={"x": (0.5, 10)}, weights={"fc": (0.1, 0.2)}))
    x, y = found.values
    assert (x.scale, x.zero_point, x.lo, x.hi, x.observer) == (0.5, 10, -5.0, 122.5, "learned")
    assert y == PLAN.values[1]
    assert found.weights[0].scales == (0.1, 0.2)
    assert with_scales(PLAN, Learned()) == PLAN
    assert plan_from_json(plan_to_json(found)) == found


def test_a_weight_is_quantized_with_the_scales_of_its_spec() -> None:
    scale = torch.rand(3, 2) + 0.1
    spec = WeightSpec(
        layer="fc", argument="weight", format="int4", axis=0, group_size=4, observer="learned",
        scales=tuple(scale.flatten().tolist()),
    )  # fmt: skip
    params = weight_params(torch.randn(3, 8), spec)
    assert torch.equal(params.scale, scale) and not params.zero_point.any()
    assert isinstance(params.format, IntFormat) and params.format.restricted


@pytest.mark.parametrize(
    ("format", "group_size", "limit", "free"),
    [
        ("int8", 0, 0, True), ("int4", 0, 64, True), ("int8", 0, 64, False),
        ("uint4", 8, 0, False), ("int4", 8, 0, True), ("float8_e4m3fn", 0, 0, True),
    ],
)  # fmt: skip
def test_scales_are_free_without_zero_points_and_limits(
    format: str, group_size: int, limit: int, free: bool
) -> None:
    spec = WeightSpec(
        layer="fc", argument="weight", format=format, axis=0, group_size=group_size, limit=limit
    )
    assert has_free_scales(spec) == free


def test_what_was_computed_is_computed_again_for_other_parameters_and_with_gradients() -> None:
    held = {"w": torch.randn(3, 4), "g": torch.rand(3)}
    with Recorder(held) as recorder, torch.no_grad():
        first, second = torch.split((held["w"] * held["g"].view(-1, 1)).detach().clone(), [1, 2])
        other = second + torch.ones(4)
    graph = fx.Graph()
    emitter = Emitter(recorder, graph, "home")
    graph.output([emitter.emit(first), emitter.emit(other)])
    assert [name.split(".")[0] for name in emitter.constants] == ["home"]

    module = nn.Module()
    module.w, module.g = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.rand(3))
    module.home = nn.Module()
    for name, tensor in emitter.constants.items():
        setattr(module.home, name.split(".")[1], tensor)
    one, two = fx.Interpreter(module, graph=graph).run()
    product = module.w * module.g[:, None]
    assert torch.equal(one, product[:1]) and torch.equal(two, product[1:] + 1)
    found = torch.autograd.grad(two.sum(), module.g)[0]
    assert torch.equal(found[1:], torch.autograd.grad((product[1:] + 1).sum(), module.g)[0][1:])


def test_a_constant_that_was_written_to_in_place_is_refused() -> None:
    held = {"w": torch.randn(3)}
    with Recorder(held) as recorder:
        made = held["w"] * 2
        made.add_(1)
    with pytest.raises(GraphError, match="written to a tensor in place"):
        Emitter(recorder, fx.Graph(), "home").emit(made)
