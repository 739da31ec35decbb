"""Two processes: replicas and shards have, to the last bit, the gradients of one that computes both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """The claims are the functions of distributed.py; this starts its two processes."""
    program = [sys.executable, str(Path(__file__).with_name("distributed.py"))]
    running = [
        subprocess.Popen([*program, str(rank), str(tmp_path)], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()  # the other one waits for ever where one has failed
    assert all(text.rstrip().endswith("held") for text in printed), "\n".join(printed)
