"""What holds for every command: help, version, exit codes, one sentence per error, and a quick start."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
from typer.testing import CliRunner, Result

from qcompiler.cli import app
from qcompiler.cli.app import VERBS

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "matplotlib", "transformers", "sklearn", "networkx")


def test_help_names_every_verb_with_a_whole_sentence(run: Callable[[str], Result]) -> None:
    page = run("--help").stdout
    assert all(f"  {verb}" in page for verb in VERBS)
    assert "..." not in page.split("Commands:")[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page(run: Callable[[str], Result], verb: str) -> None:
    result = run(f"{verb} --help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_no_verb_is_wrong_usage_and_shows_the_help(run: Callable[[str], Result]) -> None:
    result = run("")
    assert result.exit_code == 2
    assert "Commands:" in result.stdout


@pytest.mark.parametrize("module", ["qcompiler", "qcompiler.cli"])
def test_the_package_runs_as_a_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"qcompiler {importlib.metadata.version('qcompiler')}\n"


def test_version(run: Callable[[str], Result]) -> None:
    assert run("--version").stdout == f"qcompiler {importlib.metadata.version('qcompiler')}\n"


def test_help_loads_nothing_heavy() -> None:
    question = f"""
import sys
from typer.testing import CliRunner
from qcompiler.cli import app
assert CliRunner().invoke(app, ["compile", "--help"]).exit_code == 0
print(*sorted(set({HEAVY}) & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


def test_ctrl_c_ends_with_a_word_and_130(
    run: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.models.names", raising(KeyboardInterrupt()))
    result = run("models")
    assert result.exit_code == 130
    assert result.stderr == "error: stopped by Ctrl-C\n"


def test_an_unexpected_exception_is_one_sentence(
    run: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.models.names", raising(ZeroDivisionError("one\ntwo")))
    result = run("models")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: unexpected ZeroDivisionError: one two; ")
    assert "--debug" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["--debug models", "models --debug"])
def test_debug_lets_it_through(
    run: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("qcompiler.models.names", raising(ZeroDivisionError()))
    assert isinstance(run(command).exception, ZeroDivisionError)


@pytest.mark.parametrize(("value", "through"), [("1", True), ("0", False), ("", False)])
def test_the_environment_can_ask_for_the_traceback(
    monkeypatch: pytest.MonkeyPatch, value: str, through: bool
) -> None:
    monkeypatch.setenv("QCOMPILER_DEBUG", value)
    monkeypatch.setattr("qcompiler.models.names", raising(ZeroDivisionError()))
    found = CliRunner().invoke(app, ["models"]).exception
    assert isinstance(found, ZeroDivisionError) == through


def test_models_are_listed_with_where_their_weights_come_from(run: Callable[[str], Result]) -> None:
    lines = run("models").stdout.splitlines()
    assert lines[0].split() == ["name", "description", "weights"]
    assert [line.split()[0] for line in lines[1:]][:2] == ["lenet", "resnet18"]
    assert lines[1].endswith("trained")
    assert lines[2].endswith("random")
