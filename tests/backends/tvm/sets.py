"""The instruction sets that run here: kernels are tested with each, compiled as the backend does it."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.backends.tvm.build import compiled, processor_for
from qcompiler.backends.tvm.isa import Isa, runnable
from qcompiler.target.machine import this_cpu

RUNNABLE = runnable(this_cpu().features)
every_isa = pytest.mark.parametrize("isa", RUNNABLE, ids=[isa.name for isa in RUNNABLE])
pytestmark = pytest.mark.skipif(not RUNNABLE, reason="this CPU has no instruction set that kernels exist for")


def built(function: Any, isa: Isa) -> Any:
    """A function as it can be called."""
    return compiled([function], processor_for(isa))[str(function.attrs["global_symbol"])]
