"""`qcompiler train`: a small network of one's own, its page, its weights, and what goes wrong."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from qcompiler.cli.lines import Lines
from qcompiler.progress import Tell
from qcompiler.training.finetune.builtin import BuiltIn
from qcompiler.training.finetune.task import Task
from tests.cli.conftest import Run

TASKS = """
import os, signal
import torch
from torch import nn
from torch.nn.functional import cross_entropy


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))


def batch(seed):
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :4].argmax(-1)


HELD_OUT = [batch(1000), batch(1001)]


def listed():
    return module(), [batch(i) for i in range(3)], cross_entropy, HELD_OUT


def generated():
    def batches():
        for i in range(3):
            yield batch(i)

    return module(), batches, nn.CrossEntropyLoss()


def exploding():
    def batches():
        for i in range(9):
            x, y = batch(i)
            yield (x * float("inf") if i == 2 else x), y

    return module(), batches, cross_entropy, HELD_OUT


def interrupted():
    def batches():
        for i in range(9):
            if i == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch(i)

    return module(), batches, cross_entropy, HELD_OUT


def once():
    return module(), iter([batch(0), batch(1)]), cross_entropy


def triples():
    return module(), [(1, 2, 3)], cross_entropy


def unreduced():
    return module(), [batch(0)], nn.CrossEntropyLoss(reduction="none")


def unlike():
    return module(), [(torch.randn(2, 33), torch.zeros(2).long())], cross_entropy


def no_loss():
    return module(), [batch(0)]


def nothing():
    return module(), 3, cross_entropy


def frozen():
    return module().requires_grad_(False), [batch(0)], cross_entropy
"""

Train = Callable[[str], Result]


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Train:
    (tmp_path / "tasks.py").write_text(TASKS)
    torch._dynamo.reset()
    return lambda words: run(f"train tasks.py:{words}")


def data(path: str) -> dict[str, dict[str, dict[str, list[float]]]]:
    found: dict[str, dict[str, dict[str, list[float]]]] = json.loads(Path(path).read_text())
    return found


def test_the_table_the_page_and_the_weights(train: Train) -> None:
    done = train(
        "listed --steps 12 --learning-rate 0.01 --optimizer adamw8bit --no-guard "
        "--report page.html --json data.json -o weights.safetensors"
    )
    assert done.exit_code == 0, done.stderr
    for part in (
        "int8, act4",
        "validation loss",
        "above float's",
        "MB that cross",
        "Saved weights.safetensors",
    ):
        assert part in done.stdout
    page = Path("page.html").read_text()
    assert "<svg" in page and "int8 x int8" in page and "32 × 64" in page and "http" not in page
    found = data("data.json")
    plain, low = found["learners"]["float"], found["learners"]["int8, act4"]
    # Both began with the same weights, and few bits are not float.
    assert plain["validation"][0] == low["validation"][0]
    assert plain["losses"] != low["losses"] and len(low["losses"]) == 12
    assert low["validation_loss"] < low["validation"][0][1]  # type: ignore[index]
    state = load_file("weights.safetensors")
    assert sorted(state) == ["0.bias", "0.weight", "3.bias", "3.weight"]
    assert stat.S_IMODE(os.stat("weights.safetensors").st_mode) & 0o044
    assert sorted(path.suffix for path in Path().iterdir()) == [".html", ".json", ".py", ".safetensors"]


def test_it_goes_on_from_saved_weights_alone(train: Train) -> None:
    """The curves of the second run begin where the first ended, as float judges them."""
    first = train("listed --steps 3 --json first.json -o weights.pt --memory act8")
    assert first.exit_code == 0, first.stderr
    assert torch.load("weights.pt", weights_only=True).keys() == {"0.bias", "0.weight", "3.bias", "3.weight"}
    again = train("listed --steps 1 --json again.json --weights weights.pt --no-float --memory act8")
    assert again.exit_code == 0, again.stderr
    last = data("first.json")["learners"]["int8, act8"]["validation"][-1]
    assert data("again.json")["learners"].keys() == {"int8, act8"}
    assert data("again.json")["learners"]["int8, act8"]["validation"][0][1] == last[1]  # type: ignore[index]


def test_without_validation_the_loss_of_training_is_shown(train: Train) -> None:
    done = train("generated --steps 7 --recipe float --memory keep --report page.html")
    assert done.exit_code == 0, done.stderr
    assert "training loss" in done.stdout.splitlines()[0]
    assert "above float's" not in done.stdout


def test_what_is_not_finite_ends_it_with_a_sentence_and_a_page(train: Train) -> None:
    done = train("exploding --steps 9 --report page.html -o weights.pt --json data.json")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        "error: the loss of float is nan at step 3, and the batch holds 1,024 infinite numbers, "
        "because the data is not finite; mend the batches; the weights were not saved"
    )
    assert "the loss of float is nan at step 3" in Path("page.html").read_text()
    assert [len(row["losses"]) for row in data("data.json")["learners"].values()] == [2, 2]
    assert not Path("weights.pt").exists()


def test_finite_data_is_not_to_blame_for_a_loss_that_is_not(train: Train) -> None:
    done = train("listed --steps 9 --learning-rate 1e38 --optimizer sgd --recipe float --memory keep")
    assert done.exit_code == 1
    assert "because the training diverges; take a lower --learning-rate" in done.stderr


def test_ctrl_c_keeps_what_is_there(train: Train) -> None:
    done = train("interrupted --steps 9 --report page.html -o weights.pt --json data.json")
    assert done.exit_code == 130
    assert "stopped after 4 of 9 steps" in done.stdout
    assert [len(row["losses"]) for row in data("data.json")["learners"].values()] == [4, 4]
    assert Path("page.html").exists() and Path("weights.pt").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("once --steps 3 --recipe float", "gives no batches"),
        ("triples", "a batch of 'triples' is a tuple of 3; give (inputs, target)"),
        ("unreduced", "the loss of 'unreduced' is a tensor of (32,); return its mean"),
        ("unlike", "module and loss of 'unlike' fail on the first batch"),
        ("no_loss", "returns no loss, because it is missing"),
        ("nothing", "returns no batches, because they are a int"),
        ("frozen", "has no parameters to train"),
        ("listed --batch 3", "a batch of 3 is asked for"),
        ("listed --before 3", "3 steps in float before are asked for, because the factory gives the weights"),
        ("listed --recipe int7", "there is no training recipe 'int7'"),
        ("listed --memory act3", "memory is 'act3'"),
        ("listed --optimizer muon", "there is no optimizer 'muon'"),
        ("listed -o weights.bin", "'weights.bin' is no name for a checkpoint"),
        ("listed --report page.pdf", "'page.pdf' is no name for a page, because"),
        ("listed --weights nothere.pt", "there is no file 'nothere.pt', because weights are read from it"),
        ("listed --report no/page.html", "cannot write to 'no/page.html'"),
        ("listed --weights tasks.py", "'tasks.py' is no checkpoint"),
    ],
)
def test_a_sentence_for_what_does_not_work(train: Train, words: str, sentence: str) -> None:
    done = train(words)
    assert done.exit_code == 1
    assert sentence in done.stderr.splitlines()[-1] and done.stderr.count("error: ") == 1


def test_a_place_that_cannot_be_written_is_refused_before_the_training(train: Train) -> None:
    """Its rights say that it can; no file can be made there."""
    done = train("listed -o /proc/xxxx.pt --json data.json")
    assert done.exit_code == 1 and "cannot write '/proc/xxxx.pt', because" in done.stderr
    assert not Path("data.json").exists()


def test_weights_of_another_model_are_refused(train: Train) -> None:
    torch.save({"weight": torch.zeros(2)}, "other.pt")
    done = train("listed --weights other.pt")
    assert "the weights of 'other.pt' are not those of this Sequential" in done.stderr


def test_training_in_float_before_is_told_and_ctrl_c_in_it_says_what_there_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def build(batch: int, seed: int, before: int | None, tell: Tell) -> Task:
        asked.append(before)
        tell("training in float before", 0, 7)
        raise KeyboardInterrupt

    monkeypatch.setattr("qcompiler.cli.task.BUILT_IN", {"bert": BuiltIn(description="", build=build)})
    done = run("train bert --before 7 --report page.html")
    assert (done.exit_code, asked, Path("page.html").exists()) == (130, [7], False)
    assert done.stderr.splitlines() == [
        "training in float before: 7 steps",
        "warning: nothing was trained in few bits yet, and nothing is written",
        "error: stopped by Ctrl-C",
    ]


def test_a_log_has_a_line_for_each_tenth_and_none_right_after_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = Lines(patience=2.0, clock=lambda: now)
    for step in range(40):
        now += 0.25
        lines.tell("before", step, 40)
    assert capsys.readouterr().err.splitlines() == [
        "before: 40 steps", *(f"before: {step} of 40" for step in (8, 16, 24, 32))
    ]  # fmt: skip


def test_a_name_that_is_none(run: Run) -> None:
    done = run("train gpt5")
    assert done.stderr == "error: there is no training 'gpt5'; name file.py:factory, or one of bert, llama\n"
