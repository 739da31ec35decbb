"""Two processes that meet over gloo: a script is started twice, and says "held" where its claims do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).parent.parent
needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


def held_by_two(script: Path, folder: Path) -> None:
    """Run `script RANK FOLDER` as ranks 0 and 1, and fail with what they print where one does not hold."""
    running = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(folder)], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()  # the other one waits for ever where one has failed
    assert all(text.rstrip().endswith("held") for text in printed), "\n".join(printed)
