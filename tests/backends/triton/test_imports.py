"""Kernels and ops run where there is little beside torch and Triton: on a borrowed GPU, for one."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "backends" / "triton"
ABSENT = ("cattrs", "jinja2", "matplotlib", "ml_dtypes", "onnx", "onnxruntime", "onnxscript", "rich",
          "safetensors", "tvm", "typer")  # fmt: skip
DATABASE, SCHEDULES = "qcompiler.tune.database", "qcompiler.backends.triton.tuning.schedules"


def modules(folder: str) -> list[str]:
    names = [path.stem for path in sorted((FOLDER / folder).glob("*.py")) if path.stem != "__init__"]
    return [".".join(filter(None, ("qcompiler.backends.triton", folder, name))) for name in names]


def test_nothing_else_is_imported() -> None:
    """One process: ops first, since a database of schedules is read at the first launch and not before."""
    folders = ["ops", "", "configurations", "signatures", *(["kernels"] if find_spec("triton") else [])]
    assert all(modules(folder) for folder in folders)
    ops, *others = [f"import {', '.join(modules(folder))}" for folder in folders]
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"
    lines = [absent, ops, f"assert '{DATABASE}' not in sys.modules", f"import {SCHEDULES}", *others]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
