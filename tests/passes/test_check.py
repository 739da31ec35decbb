"""What was promised against what is: the contract, and the distance to the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qcompiler.backends.base import Executed
from qcompiler.errors import ContractError
from qcompiler.passes.check import Distance, contract, distance
from qcompiler.plan import LayerPlan, Plan


def layer(node: str, precision: str) -> LayerPlan:
    return LayerPlan(
        node=node, label=f"net/{node}", op="conv2d", kernel="QLinearConv", precision=precision, why=""
    )


PLAN = Plan(recipe="r", target="cpu", layers=(layer("a", "int8"), layer("b", "int4"), layer("c", "float")))


def ran(*precisions: str) -> list[Executed]:
    reasons = {"float": "its output has no quantize"}
    return [
        Executed(node=node, kernel="k", precision=precision, reason=reasons.get(precision, ""))
        for node, precision in zip("abc", precisions, strict=True)
    ]


def test_a_contract_holds_where_everything_planned_in_integers_runs_so() -> None:
    found = contract(PLAN, reversed(ran("int8", "int4", "float")), [])
    assert found.holds and not found.surprises
    assert [row.executed for row in found.rows] == ["int8", "int4", "float"]
    found.enforce()


def test_a_float_layer_that_runs_in_integers_is_no_surprise() -> None:
    assert contract(PLAN, ran("int8", "int4", "int8"), []).holds


def test_a_surprise_is_named_with_its_reason() -> None:
    found = contract(PLAN, ran("float", "float", "float"), [])
    assert [row.layer.node for row in found.surprises] == ["a", "b"]
    with pytest.raises(ContractError) as caught:
        found.enforce()
    assert str(caught.value) == (
        "2 layers planned as int8 run in float at net/a (conv2d), because its output has no quantize; "
        "change the recipe for these layers, or compile without strict"
    )


def test_pairs_that_stand_between_kernels_break_the_contract() -> None:
    found = contract(PLAN, ran("int8", "int4", "float"), ["q_1", "dq_1"])
    assert not found.holds
    with pytest.raises(
        ContractError, match=r"^2 quantize/dequantize pairs stand between integer kernels at q_1"
    ):
        found.enforce()


# ---------------------------------------------------------------- distance

WANTED = torch.tensor([[0.0, 51.0], [102.0, 255.0]])  # so that one LSB of the reference is 1


def measured(reference: Tensor, engine: Tensor, wanted: Tensor = WANTED) -> Distance:
    return distance([[wanted]], [[reference]], [[engine]])


def test_an_equal_engine_has_no_distance() -> None:
    found = measured(WANTED, WANTED)
    assert (found.max_lsb, found.changed, found.agreement, found.unit) == (0, 0, 1, 1)
    assert found.sqnr_db == found.reference_sqnr_db == math.inf
    assert found.within


def test_distance_is_counted_in_steps_of_the_reference() -> None:
    found = measured(WANTED, WANTED + torch.tensor([[0.0, 0.0], [0.5, 0.0]]))
    assert (found.max_lsb, found.changed, found.bound_lsb, found.samples) == (0.5, 0.25, 1, 1)
    assert found.within
    assert not measured(WANTED, WANTED + 1.5).within


def test_an_engine_may_differ_as_much_as_quantization_explains() -> None:
    reference = WANTED.clone()
    reference[0, 1] += 8
    found = measured(reference, reference + 16)  # as far from float as the reference, on the other side
    assert (found.max_lsb, found.bound_lsb) == (16, 16)
    assert found.within and not measured(reference, reference + 17).within


def test_rows_agree_where_their_largest_entry_stands_at_the_same_place() -> None:
    assert measured(WANTED, WANTED.flip(1)).agreement == 0
    swapped = WANTED.clone()
    swapped[0] = swapped[0].flip(0)
    assert measured(WANTED, swapped).agreement == 0.5


def test_samples_and_outputs_are_pooled_and_other_results_left_out() -> None:
    outputs = [[WANTED, torch.tensor([3]), None], [WANTED[:1] * 2, torch.tensor([4]), None]]
    found = distance(outputs, outputs, outputs)
    assert (found.samples, found.agreement) == (2, 1)
    noisy = [[WANTED + 1, torch.tensor([3]), None], [WANTED[:1] * 2, torch.tensor([4]), None]]
    power = float((WANTED**2).sum() + (WANTED[:1] ** 2).sum() * 4)
    assert distance(outputs, outputs, noisy).sqnr_db == pytest.approx(10 * math.log10(power / 4))


def test_integer_outputs_count_by_equal_entries() -> None:
    found = distance([[torch.tensor([1, 2])]], [[torch.tensor([1, 2])]], [[torch.tensor([1, 3])]])
    assert (found.max_lsb, found.changed, found.agreement) == (0, 0, 0.5)


def test_every_output_has_its_own_unit() -> None:
    """An error of a tenth of a small output is not hidden by a large one beside it."""
    large, small = WANTED * 1000, WANTED / 1000
    wrong = small + 0.1 * small.abs().max()
    assert not distance([[large, small]], [[large, small]], [[large, wrong]]).within


def test_nan_in_a_later_sample_is_not_within() -> None:
    good, bad = [WANTED], [WANTED * torch.nan]
    assert not distance([good, good], [good, good], [good, bad]).within


def test_nan_in_the_engine_is_not_within() -> None:
    assert not measured(WANTED, WANTED * torch.nan).within
