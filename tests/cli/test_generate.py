"""`qcompiler generate`: tokens on stdout, their rate on stderr, and one sentence per refusal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qcompiler.cli import app
from qcompiler.cli.generate import summary
from qcompiler.report import summary as summary_module

Run = Callable[[str], Result]

SMALL = """
from qcompiler.models.decoder import Decoder, Shape
from qcompiler.models.decoding import random_decoder


def decoder():
    shape = Shape(vocabulary=60, width=64, hidden=64, depth=1, heads=4, kv_heads=2, positions=32)
    return random_decoder(shape, std=0.1)  # it makes its own inputs
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.py").write_text(SMALL)
    command = f"generate {folder}/small.py:decoder -p 5,6 -n 6 --capacity 16 --threads 1 -o {folder}/small.qc"
    return folder / "small.qc", CliRunner().invoke(app, command.split())


def test_tokens_go_to_stdout_and_their_rate_to_stderr(saved: tuple[Path, Result]) -> None:
    _, result = saved
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.split()) == 6
    assert all(0 <= int(word) < 60 for word in result.stdout.split())
    assert re.search(
        r"prompt of 2 tokens: first new one after \d+ ms; 5 more at [\d.]+ tokens/s", result.stderr
    )


def test_a_saved_decoder_gives_the_same(saved: tuple[Path, Result], run: Run) -> None:
    folder, first = saved
    result = run(f"generate {folder} -p 5,6 -n 6 --threads 1 -q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, first.stdout, "")
    assert len(run(f"generate {folder} --threads 1 -q").stdout.split()) == 9  # a prompt of 8, a cache of 16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("-p 1,two", "the prompt '1,two' is not a list of token ids"),
        ("-p 1,60", "the model has no token 60, because its vocabulary goes from 0 to 59"),
        (
            "-p 1 -n 20",
            "a prompt of 1 token with 20 new ones behind it does not fit, because the cache holds 16",
        ),
        (
            "-p 1 --capacity 8 -r w8a16",
            "is compiled already, and --recipe and --capacity are for a model that is not; leave them out",
        ),
        ("-p 1 --override *:weights=int8", "is compiled already, and --override is for a model that is not"),
    ],
)
def test_what_is_refused(saved: tuple[Path, Result], run: Run, options: str, sentence: str) -> None:
    result = run(f"generate {saved[0]} {options}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence in result.stderr and result.stderr.count("\n") == 1


def on_a_terminal(command: str, *, stdout: bool) -> tuple[str, str]:
    """What stands on a terminal that is stderr, and stdout if wanted; and what goes to a piped stdout."""
    seen, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", "from qcompiler.cli import main; main()", *command.split()],
        stdin=subprocess.DEVNULL,
        stdout=terminal if stdout else subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while part := os.read(seen, 4096):
            shown += part
    piped = child.communicate()[0] or b""
    os.close(seen)
    assert child.returncode == 0, shown
    return shown.decode(), piped.decode()


def test_no_bar_stands_between_tokens_on_a_terminal(saved: tuple[Path, Result]) -> None:
    folder, first = saved
    shown, _ = on_a_terminal(f"generate {folder} -p 5,6 -n 6 --threads 1", stdout=True)
    lines = shown.split("\r\n")
    assert lines[:6] == first.stdout.split()
    assert lines[6].startswith("prompt of 2 tokens") and lines[7:] == [""]


def test_tokens_go_to_a_pipe_while_a_bar_is_on_the_terminal(saved: tuple[Path, Result]) -> None:
    folder, first = saved
    shown, piped = on_a_terminal(f"generate {folder} -p 5,6 -n 6 --threads 1", stdout=False)
    assert piped == first.stdout
    assert "generating" in shown and "prompt of 2 tokens" in shown


def test_ranges_need_data_that_this_command_has_not(saved: tuple[Path, Result], run: Run) -> None:
    result = run(f"generate {saved[0].parent}/small.py:decoder -p 1 -r int8")
    assert result.exit_code == 1
    assert "'int8' takes ranges from data, and there is none here; use -r int8-dynamic" in result.stderr


def test_a_compiled_decoder_is_not_silent_about_what_to_look_at(
    saved: tuple[Path, Result], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.search(r"w4a16 on ONNX Runtime.*: \d+ of \d+ planned layers", saved[1].stderr)
    monkeypatch.setattr(summary_module, "LOW_SQNR_DB", 1000.0)  # so that any decoder is flagged
    result = run(f"generate {saved[0].parent}/small.py:decoder -p 1 -n 1 --capacity 16 --threads 1")
    assert "look at: " in result.stderr and "dB against float is low" in result.stderr


def test_a_model_that_is_no_decoder_is_refused(run: Run) -> None:
    result = run("generate zoo:mlp -p 1")
    assert result.exit_code == 1
    assert "is no decoder, because it has no method empty_cache" in result.stderr


def test_the_rate_is_that_of_the_steps() -> None:
    assert (
        summary(3, [0.5, 0.6, 0.7])
        == "prompt of 3 tokens: first new one after 500 ms; 2 more at 10.0 tokens/s"
    )
    assert summary(3, [0.5]) == "prompt of 3 tokens: first new one after 500 ms"
