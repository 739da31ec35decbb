"""Decisions over the rows of a linear: what is chosen, text that reads back, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.backends.triton.decisions import DEFAULT, Decisions, parse_decisions
from qcompiler.errors import InputError

names = st.sampled_from(("a", "int8_linear", "from", "Q7"))
borders = st.lists(st.integers(1, 10**6), max_size=4, unique=True).map(lambda found: tuple(sorted(found)))


@settings(max_examples=25)
@given(borders, st.data(), st.booleans())
def test_text_reads_back(found: tuple[int, ...], data: st.DataObject, measured: bool) -> None:
    chosen = data.draw(st.lists(names, min_size=len(found) + 1, max_size=len(found) + 1))
    decisions = Decisions(borders=found, names=tuple(chosen), measured=measured)
    assert parse_decisions(str(decisions), measured=measured) == decisions


def test_a_border_belongs_to_what_is_above_it() -> None:
    decisions = Decisions(borders=(16, 4096), names=("gemv", "ours", "vendor"))
    assert [decisions.choose(rows) for rows in (0, 1, 15, 16, 4095, 4096, 10**9)] == [
        "gemv", "gemv", "gemv", "ours", "ours", "vendor", "vendor",
    ]  # fmt: skip
    assert str(decisions) == "gemv, from 16 ours, from 4096 vendor"
    assert not any(each.measured for each in DEFAULT.values())


@pytest.mark.parametrize("wrong", [(1,), (4, 2, 1), (2, 2, 3), (0, 1, 2)])
def test_borders_ascend_and_are_one_fewer_than_names(wrong: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="borders"):
        Decisions(borders=wrong, names=("a", "b", "c", "d") if len(wrong) == 3 else ("a", "b", "c"))


@pytest.mark.parametrize("text", ["", "a, b", "a, from 0 b", "a, from 16", "a,from 16 b", "a b"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="read like"):
        parse_decisions(text)


def test_one_word_names_a_kernel() -> None:
    with pytest.raises(InputError, match="one word"):
        Decisions(names=("a, b",))
