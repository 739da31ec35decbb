"""Small models as a user would write them, and a way to run a command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from qcompiler.cli import app

ZOO = '''
import torch
from torch import nn


class Residual(nn.Module):
    """Its first result is read twice: by a convolution and by the addition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + x)
        return self.head(x.mean((2, 3)))


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def residual():
    torch.manual_seed(0)
    return Residual().eval(), (draw(2, 3, 8, 8),), [draw(4, 3, 8, 8)]


class Agreement:
    name, samples = "agreement", 8

    def __init__(self, module):
        self.wanted = module(draw(8, 32)).argmax(-1)

    def __call__(self, run):
        right = run(draw(8, 32)).argmax(-1) == self.wanted
        return {self.name: right.double().mean().item(), "samples": self.samples}


class Mlp(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def mlp():
    module = Mlp().eval()
    return module, (draw(2, 32),), [draw(8, 32)], Agreement(module)


class Bundled:
    def __init__(self):
        self.module, self.example_inputs = Mlp().eval(), {"input": draw(2, 32)}


def itself():
    module = Mlp().eval()
    module.example_inputs = draw(2, 32)
    return module


def exported():
    return torch.export.export(Mlp().eval(), (draw(2, 32),))
'''

Run = Callable[[str], Result]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "zoo.py").write_text(ZOO)
    return folder


@pytest.fixture
def run(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder; `zoo:name` is a model of the zoo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # What it can print with must not depend on where the tests run.
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("QCOMPILER_DEBUG", raising=False)

    def invoke(command: str) -> Result:
        words = [word.replace("zoo:", f"{zoo / 'zoo.py'}:") for word in shlex.split(command)]
        return CliRunner().invoke(app, words)

    return invoke
