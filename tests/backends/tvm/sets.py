"""The instruction sets that run here: kernels are tested with each, compiled as the backend does it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import strategies as st

from qcompiler.backends.tvm.build import compiled, processor_for
from qcompiler.backends.tvm.isa import AVX2, Isa, runnable
from qcompiler.target.machine import this_cpu
from tests.backends.tvm.portable import PORTABLE

RUNNABLE = runnable(this_cpu().features)
BEST = next(iter(RUNNABLE), AVX2)
TRIED = (*RUNNABLE, PORTABLE) if AVX2 in RUNNABLE else RUNNABLE
every_isa = pytest.mark.parametrize(
    "isa",
    [
        pytest.param(isa, id=isa.name, marks=[] if isa in (BEST, PORTABLE) else [pytest.mark.thorough])
        for isa in TRIED
    ],
)
some_isa = st.sampled_from((*RUNNABLE, PORTABLE))  # one per example, so that a test draws from all of them
pytestmark = pytest.mark.skipif(not RUNNABLE, reason="this CPU has no instruction set that kernels exist for")


FEW = 2  # networks of a kind that show whether it works at all


def seeds(best: int, others: int) -> pytest.MarkDecorator:
    """Networks by number for every set: some for the one that is used here, fewer for the others.

    From the third on they are thorough. NETWORKS=40 in the environment asks for so many of each kind.
    """
    asked = int(os.environ.get("NETWORKS", "0"))
    numbers = [(isa, seed) for isa in RUNNABLE for seed in range(max(best, asked) if isa is BEST else others)]
    found = [
        pytest.param(
            isa, seed, id=f"{isa.name}-{seed}",
            marks=[pytest.mark.thorough] if seed >= FEW and not asked else [],
        )
        for isa, seed in numbers
    ]  # fmt: skip
    return pytest.mark.parametrize(("isa", "seed"), found)


def built(function: Any, isa: Isa) -> Any:
    """A function as it can be called."""
    return compiled([function], processor_for(isa))[str(function.attrs["global_symbol"])]
