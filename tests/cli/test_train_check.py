"""`qcompiler train-check`: the tables, and a sentence for what does not work."""

import torch

from tests.cli.conftest import Run

TOLD = ("grad-weight", "e4m3 x e4m3", "classifier.0.weight", "nothing in float", "The mean of 2 steps")


def test_the_tables(run: Run) -> None:
    torch._dynamo.reset()
    done = run("train-check lenet --batch 16 --draws 2 --recipe fp8-e4m3")
    assert done.exit_code == 0, done.stderr
    assert all(part in done.stdout for part in TOLD)


def test_a_tolerance_that_is_not_met(run: Run) -> None:
    torch._dynamo.reset()
    done = run("train-check lenet --batch 16 --draws 2 --tolerance 0.001")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: gradients are 0.")
    assert "and may be 0.001 at" in done.stderr
