"""The character model: real text, split by files, and a figure that is the perplexity."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from qcompiler.models.charlm import (
    HELD_OUT,
    SHAPE,
    TRAINED_ON,
    Perplexity,
    bundle,
    codes_of,
    corpus,
    train,
    warm_cosine,
    windows,
)
from qcompiler.models.decoder import Growing


def test_the_text_is_that_of_the_standard_library_and_no_file_is_in_both_parts() -> None:
    text = corpus()
    assert not {*TRAINED_ON} & {*HELD_OUT}
    assert len(text.train) > 10 * len(text.held_out) > 1_000_000
    assert int(text.train.max()) < SHAPE.vocabulary
    assert "class ArgumentParser" in bytes(text.train.tolist()).decode()
    assert "class ArgumentParser" not in bytes(text.held_out.tolist()).decode()


def test_other_characters_become_question_marks_and_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("né\n", encoding="utf-8")
    assert bytes(codes_of(tmp_path, ["a", "absent"]).tolist()) == b"n?\n"
    with pytest.raises(FileNotFoundError, match="None of the expected source files"):
        codes_of(tmp_path, ["b"])


def test_windows_are_stretches_of_the_text() -> None:
    rows = windows(torch.arange(100), 8, 10, torch.Generator().manual_seed(0))
    assert (
        rows.shape == (8, 10)
        and ((rows[:, 1:] - rows[:, :-1]) == 1).all()
        and len(set(rows[:, 0].tolist())) > 1
    )


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [warm_cosine(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == pytest.approx(rates[24], rel=0.2)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    metric = Perplexity(text=torch.randint(128, (6, 9)), batch=4)
    figures = metric(lambda tokens: (torch.zeros(*tokens.shape, 128), None))
    assert figures["perplexity"] == pytest.approx(128)
    assert figures[metric.name] == pytest.approx(-math.log(128)) and figures["samples"] == 6


def test_a_few_steps_learn_the_same_each_time_and_leave_the_random_state_alone() -> None:
    text = corpus()
    before = torch.get_rng_state()
    first, second = (train(text.train, steps=12, batch=4) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad
    module, _, calibration, metric = bundle(first, text, calibration=2, samples=4)
    assert isinstance(module, Growing) and len(calibration) == 2
    assert metric(module)["perplexity"] < 60  # of 128 that knowing nothing has
