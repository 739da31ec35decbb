"""The trainings that come along, what their batches are, and optimizers and weights beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from qcompiler.errors import ArtifactError
from qcompiler.progress import silent
from qcompiler.training.finetune import Settings, bert, fine_tune, llama
from qcompiler.training.finetune.builtin import BUILT_IN
from qcompiler.training.finetune.characters import KINDS, kinds
from qcompiler.training.finetune.checkpoint import load_weights, save_weights
from qcompiler.training.finetune.optimizers import OPTIMIZERS, find_plain, make, state_bytes
from qcompiler.training.finetune.task import endless


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LETTERS = {
    "space": " ",
    "operator": "o",
    "keyword": "k",
    "name": "n",
    "number": "9",
    "string": "s",
    "comment": "c",
}


@pytest.mark.parametrize(
    ("source", "coloured"),
    [
        ("if x: pass  # if\n", "kk no kkkk  cccc "),
        ('y = """a\nif"""+2.5\n', "n o sssssssssso999 "),
        ("def f(a='é'):\n    return not a\n", "kkk nonosssoo     kkkkkk kkk n "),
    ],
)
def test_what_each_character_is(source: str, coloured: str) -> None:
    assert "".join(LETTERS[KINDS[kind]] for kind in kinds(source)) == coloured
    assert len(kinds(source)) == len(source)


def test_some_characters_are_hidden_and_only_these_are_asked_for() -> None:
    shown, wanted = bert.masked(seed=0)(torch.full((8, 64), 65))
    hidden = shown == bert.HIDDEN
    assert 0.1 < hidden.float().mean() < 0.2
    assert torch.equal(hidden, wanted != bert.IGNORED) and wanted[hidden].unique().tolist() == [65]


@pytest.mark.parametrize("name", BUILT_IN)
def test_batches_are_a_function_of_the_seed(name: str) -> None:
    def first(seed: int) -> torch.Tensor:
        task = BUILT_IN[name].build(2, seed, 0, silent)
        return torch.cat([inputs for inputs, _ in islice(endless(task), 3)])

    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))


@pytest.mark.parametrize(("name", "module"), [("bert", bert), ("llama", llama)])
def test_the_trainings_that_come_along(name: str, module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow and short, the loss falls nevertheless, in few bits as in float."""
    torch._dynamo.reset()
    if name == "bert":
        monkeypatch.setattr(bert, "WIDTH", 32)
        monkeypatch.setattr(bert, "DEPTH", 1)
    else:
        monkeypatch.setattr(llama, "SHAPE", replace(llama.SHAPE, width=32, hidden=64, depth=1))
    row = BUILT_IN[name]
    task = row.build(8, 0, 3, silent)
    task = replace(task, validation=task.validation[:2])
    found = fine_tune(task, Settings(memory=row.memory, steps=24, rate=4e-3, guard=False)).data
    low, plain = found["learners"][found["setting"]], found["learners"]["float"]
    assert low["validation_loss"] < low["validation"][0][1] - 0.3
    assert abs(low["validation_loss"] - plain["validation_loss"]) < 0.1
    sums, (graph,) = found["memory"], found["graphs"]
    assert sums["crosses"] == sum(value["stored"] for value in graph["values"]) < sums["crosses_float"] / 2
    assert {"int8 x int8"} <= {product["formats"] for product in graph["products"]}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_an_optimizer(name: str) -> None:
    """8 bits take a quarter of float32 and the bounds of blocks; float beside it has float32 states."""
    taken = []
    for choice in (OPTIMIZERS[name], find_plain(name)):
        layer = nn.Linear(128, 64, bias=False)
        optimizer = make(choice, layer.parameters(), 1e-3)
        layer(torch.randn(2, 128)).sum().backward()
        optimizer.step()
        taken.append(state_bytes(optimizer))
    assert taken[0] < 0.26 * taken[1] if name.endswith("8bit") else taken[0] == taken[1]
    assert taken[1] >= 4 * 128 * 64


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_weights_come_back(ending: str, tmp_path: Path) -> None:
    path, given, other = tmp_path / f"model{ending}", Tied(), Tied()
    save_weights(given, path)
    load_weights(other, path)
    assert all(map(torch.equal, given.state_dict().values(), other.state_dict().values()))
    path.write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_weights(other, path)


def test_what_fails_while_it_is_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"before")

    def full(state: object, draft: Path) -> None:
        draft.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ArtifactError, match="No space left"):
        save_weights(nn.Linear(2, 2), path)
    assert path.read_bytes() == b"before" and [*tmp_path.iterdir()] == [path]
