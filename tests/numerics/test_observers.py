"""Observers: each reads its range off what it saw, and merges with its kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics import (
    OBSERVERS,
    Constant,
    IntFormat,
    Isotone,
    MinMax,
    MovingAverage,
    PerTensor,
    Scheme,
    make_observer,
    params_from_range,
    parse_format,
    quantize,
)

INT8 = parse_format("int8")
OPTIONS: dict[str, dict[str, Any]] = {
    "kl": {"format": INT8},
    "mse": {"format": INT8, "scheme": "symmetric"},
    "isotone": {"format": INT8},
    "constant": {"low": -1.0, "high": 2.0},
}
ISOTONE_SCHEMES: list[Scheme] = ["symmetric", "one_sided"]
ORDERED = [name for name in OBSERVERS if name != "moving_average"]


@pytest.mark.parametrize("name", ORDERED)
def test_any_split_or_merge_gives_the_same_range(name: str) -> None:
    rows = torch.randn(60, 10)
    whole, left, right = (make_observer(name, **OPTIONS.get(name, {})) for _ in range(3))
    whole.observe(rows)
    left.observe(rows[40:])
    for row in torch.split(rows[:40], 7):
        right.observe(row)
    left.merge(right)
    assert left.range() == whole.range()


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "constant"])
def test_bad_data_is_refused_by_name(name: str) -> None:
    observer = make_observer(name, name="conv1", **OPTIONS.get(name, {}))
    with pytest.raises(CalibrationError, match="conv1 was never observed"):
        observer.range()
    for values, complaint in (
        ([[]], "is empty"),
        ([[1.0, torch.nan]], "contains NaN"),
        ([[torch.inf, 1.0]], "contains inf"),
    ):
        with pytest.raises(CalibrationError, match=f"conv1 {complaint}"):
            observer.observe(torch.tensor(values))


def test_minmax() -> None:
    observer = MinMax()
    observer.observe(torch.tensor([1.0, 5.0]))
    observer.observe(torch.tensor([-2.0, 3.0]))
    assert observer.range() == (-2.0, 5.0)


def test_the_moving_average_is_its_recurrence_and_does_not_merge() -> None:
    observer = MovingAverage(rate=0.25)
    for low, high in ((-4.0, 8.0), (0.0, 4.0), (-8.0, 0.0)):
        observer.observe(torch.tensor([low, high]))
    assert observer.range() == ((-4.0 * 0.75) * 0.75 - 8.0 * 0.25, (8.0 * 0.75 + 1.0) * 0.75)
    with pytest.raises(CalibrationError, match="order"):
        observer.merge(observer)


def test_constants_must_agree() -> None:
    with pytest.raises(RecipeError, match="two constant ranges"):
        Constant(low=0.0, high=1.0).merge(Constant(low=0.0, high=2.0))


def test_unknown_observers_are_refused() -> None:
    with pytest.raises(RecipeError, match=r'"median".*minmax'):
        make_observer("median")


@given(
    gaps=st.lists(
        st.tuples(st.floats(-20, 20, width=32), st.floats(0, 4, width=32)), min_size=1, max_size=20
    ),
    name=st.sampled_from(["int4", "int8", "uint8"]),
    scheme=st.sampled_from(ISOTONE_SCHEMES),
)
def test_isotone_keeps_every_row_whose_condition_its_scale_meets(gaps, name: str, scheme) -> None:  # type: ignore[no-untyped-def]
    format = parse_format(name)
    assert isinstance(format, IntFormat)
    observer = Isotone(format=format, scheme=scheme)
    rows = torch.tensor([[second, second + gap] for second, gap in gaps], dtype=torch.float32)
    observer.observe(rows)
    lo, hi = observer.range()
    assume(hi > 1e-30)
    params = params_from_range(lo, hi, format, PerTensor(), scheme=scheme)
    assert isinstance(params.format, IntFormat)
    scale, zero = params.scale.double().item(), int(params.zero_point)
    second, first = rows.double().unbind(1)
    first, second = torch.maximum(first, second), torch.minimum(first, second)
    safe = (
        (scale < first - second)
        & (second / scale < params.format.qmax - zero - 0.5)
        & (first / scale > params.format.qmin - zero + 0.5)
    )
    codes = quantize(torch.stack([first, second], 1), params)
    survived = codes[:, 0] > codes[:, 1]
    assert bool(survived[safe].all())
    kept, total, ties = observer.survivors()
    assert (kept, total, ties) == (int(survived.sum()), len(gaps), int((first == second).sum()))


@pytest.mark.parametrize(("scheme", "bottom", "top"), [("symmetric", -7, 7), ("one_sided", 0, 15)])
@pytest.mark.parametrize("shift", [-20.0, -5.0, 0.0, 20.0])
def test_isotone_meets_as_many_conditions_as_any_scale(
    scheme: Scheme, bottom: int, top: int, shift: float
) -> None:
    rows = torch.randn(200, 10) * 3 + shift
    first, second = rows.double().topk(2).values.unbind(1)
    observer = Isotone(format=IntFormat(bits=4, signed=scheme == "symmetric"), scheme=scheme)
    observer.observe(rows)

    def met(scale: float) -> int:
        above, below = second / scale < top - 0.5, first / scale > bottom + 0.5
        return int(((scale < first - second) & above & below).sum())

    chosen = met(observer.range()[1] / top)
    assert chosen >= max(met(scale) for scale in torch.logspace(-4, 1, 2000, dtype=torch.float64).tolist())


def test_isotone_refutes_the_weaker_condition_of_the_literature() -> None:
    # s < 2 (L1 - L2) holds for L1 = 0.45, L2 = -0.15, s = 1, and both round to 0
    rows = torch.tensor([[0.45, -0.15]])
    params = params_from_range(-127.0, 127.0, INT8, PerTensor(), scheme="symmetric")
    assert quantize(rows, params).tolist() == [[0, 0]]
    observer = Isotone(format=IntFormat(bits=8, signed=True))
    observer.observe(rows)
    assert observer.survivors() == (1, 1, 0)


def test_isotone_needs_a_known_zero_point_and_two_classes() -> None:
    with pytest.raises(RecipeError, match="zero point"):
        Isotone(format=IntFormat(bits=8, signed=False), scheme="asymmetric")
    with pytest.raises(CalibrationError, match="second class"):
        Isotone(format=IntFormat(bits=8, signed=True)).observe(torch.ones(3, 1))
