"""What holds for every test: few threads, and the same random numbers each time."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# Under xdist each worker has one core, and what it starts; more threads than cores make every test slower.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Properties are tried on the same examples each time, so a red run is red again for whoever looks into it;
# --hypothesis-profile=default tries others, and more. A deadline would fail right tests on a busy machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Each test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # before `-m` and `-k` choose
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what `thorough.txt` names; a line that names no test of a file collected whole is an error."""
    text = Path(__file__).with_name("thorough.txt").read_text()
    lines = {line for line in text.splitlines() if line and not line.startswith("#")}
    found, files = set[str](), set[str]()
    for item in items:
        test = item.nodeid.split("[")[0]
        file = test.split("::")[0]
        names = lines & {item.nodeid, test, file}
        if names:
            item.add_marker(pytest.mark.thorough)
        found |= names
        files.add(file)
    lost = [line for line in sorted(lines - found) if line.split("::")[0] in files]
    if lost and not any("::" in given for given in config.args):
        raise pytest.UsageError(f"tests/thorough.txt names no test by {lost}")
