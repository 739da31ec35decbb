"""Every kernel against its reference, interpreted on the CPU in a process of its own.

Triton reads TRITON_INTERPRET when it is imported, and what is interpreted can no longer be compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.triton.cases import CASES

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreter
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.triton.interpreted"], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ended = f"the process ended with {done.returncode} before: {done.stderr}"
    return {**dict.fromkeys(CASES, ended), **{line["case"]: line["failure"] for line in lines}}


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_computes_what_its_reference_does(failures: dict[str, str], case: str) -> None:
    assert failures[case] == "", failures[case]
