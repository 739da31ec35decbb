"""`qcompiler export --format cuda`: sources and a manifest, or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Run = Callable[[str], Result]


def test_float_ops_are_written_and_what_is_not_covered_is_told(run: Run) -> None:
    result = run("export zoo:residual --format cuda --arch sm_90 -o kernels")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads(Path("kernels/manifest.json").read_text())
    assert manifest["architecture"] == "sm_90" and manifest["functions"]
    assert all(Path("kernels", row["file"]).read_text() for row in manifest["functions"])
    assert f"{len(manifest['functions'])} functions for sm_90" in result.stdout
    for reason in set(manifest["not_covered"].values()):
        assert reason.split(",")[0] in result.stderr


def test_a_folder_that_holds_something_and_another_format_are_refused(run: Run) -> None:
    Path("kernels").mkdir()
    Path("kernels", "mine.cu").write_text("")
    result = run("export zoo:residual --format cuda -o kernels")
    assert result.exit_code == 1 and "is no empty folder" in result.stderr
    result = run("export zoo:residual --format wasm -o kernels")
    assert result.exit_code == 2 and "'wasm' is not one of 'onnx', 'library', 'cuda'" in result.stderr
