"""What holds for every test: few threads, and the same random numbers each time."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import cache

import hypothesis
import numpy as np
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

# Under xdist each worker has one core; more threads than cores make every test slower.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

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


@pytest.fixture(scope="session", autouse=True)
def one_table_of_translations() -> Iterator[None]:
    """torch reads the source of all its translations to ONNX anew for every export: most of the time of one.

    Here they are read once per opset; each export still has a table of its own, and adds to it what is ours.
    """
    read = cache(ONNXRegistry.from_torchlib)

    def copied(opset_version: int) -> ONNXRegistry:
        table, held = ONNXRegistry(), read(opset_version)
        table._opset_version = held.opset_version
        table.functions = {target: [*found] for target, found in held.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield
