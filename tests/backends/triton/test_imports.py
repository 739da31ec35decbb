"""Kernels and ops run where there is little beside torch and Triton: on a borrowed GPU, for one."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "backends" / "triton"
ABSENT = ("cattrs", "jinja2", "matplotlib", "ml_dtypes", "onnx", "onnxruntime", "onnxscript", "rich",
          "safetensors", "tvm", "typer")  # fmt: skip
DATABASE, SCHEDULES = "qcompiler.tune.database", "qcompiler.backends.triton.tuning.schedules"


def modules(folder: str) -> list[str]:
    names = [path.stem for path in sorted((FOLDER / folder).glob("*.py")) if path.stem != "__init__"]
    return [".".join(filter(None, ("qcompiler.backends.triton", folder, name))) for name in names]


@pytest.mark.parametrize("folder", ["", "configurations", "kernels", "ops", "signatures"])
def test_nothing_else_is_imported(folder: str) -> None:
    if folder == "kernels" and find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    assert modules(folder)
    script = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\nimport {', '.join(modules(folder))}"
    if folder == "ops":  # a database of schedules is read at the first launch, and not before
        script += f"\nassert '{DATABASE}' not in sys.modules\nimport {SCHEDULES}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
