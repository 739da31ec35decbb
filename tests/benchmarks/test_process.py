"""A process of its own: what it sends, what it raises and how it ends reach the parent as a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The work must be something that the new process can import; these methods of its end of the pipe are.
PROGRAM = """
import os
import sys
from operator import methodcaller
from pathlib import Path
from benchmarks.process import Lost, Worker

work = methodcaller(*sys.argv[2:])
with Worker(work, cores=[min(os.sched_getaffinity(0))], log=Path(sys.argv[1])) as worker:
    try:
        print(worker.receive(patience=60))
    except Lost as error:
        print("lost:", error)
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are chosen on Linux")
@pytest.mark.parametrize(
    ("work", "told"),
    [
        (["send", "5"], "5"),
        (["no_such"], "lost: AttributeError: 'Connection' object has no attribute 'no_such'"),
        (["close"], "lost: the process ended with code 0"),
    ],
)
def test_an_answer_an_error_and_an_end_are_told_apart(work: list[str], told: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), *work],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [told], done.stderr
