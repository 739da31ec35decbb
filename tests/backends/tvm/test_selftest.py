"""The self-tests find what is wrong: another version, other instructions, other memory."""

from __future__ import annotations

import importlib.metadata
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from tvm import tirx

from qcompiler.backends.tvm import Tvm, selftest
from qcompiler.backends.tvm.build import placed
from qcompiler.backends.tvm.builder import pure
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.isa.avx512 import AVX512_VNNI
from qcompiler.errors import EngineError
from tests.backends.tvm.sets import BEST, RUNNABLE, every_isa, pytestmark

__all__ = ["pytestmark"]


@every_isa
def test_this_machine_is_sound(isa: Isa) -> None:
    found = {name: test(isa) for name, test in selftest.SELF_TESTS.items()}
    assert found["instructions"].startswith(isa.name)


def test_the_pin_is_that_of_the_package() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert selftest.FFI in map(Requirement, tomllib.loads(text)["project"]["dependencies"])


def test_a_version_that_crashes_is_refused_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.15")
    selftest.check.cache_clear()
    with pytest.raises(EngineError, match=r"apache-tvm-ffi 0\.1\.15 will not do .*tensorize.*pip install"):
        Tvm()


def vnni_of_words(accumulator: Any, a: Any, w: Any) -> Any:
    """The operands that this instruction had in LLVM before 22."""
    words = (tirx.op.reinterpret("int32x16", x) for x in (a, w))
    return pure("int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, *words)


def saturated(accumulator: Any, a: Any, w: Any) -> Any:
    """The shorter way to products of bytes, which cuts sums of two to 16 bits."""
    pairs = pure("int16x32", "llvm.x86.avx512.pmaddubs.w.512", a, w)
    ones = tirx.Broadcast(tirx.const(1, "int16"), 32)
    return accumulator + pure("int32x16", "llvm.x86.avx512.pmaddw.d.512", pairs, ones)


def truncated(x: Any) -> Any:
    return tirx.Cast("int32x16", x)


@pytest.mark.skipif(AVX512_VNNI not in RUNNABLE, reason="this CPU has no avx512_vnni")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dot": vnni_of_words}, "do not compile .*Call parameter type does not match"),
        ({"dot": saturated}, "compute wrong numbers .*'dot' gave"),
        ({"nearest": truncated}, "compute wrong numbers .*'nearest and narrow' gave"),
    ],
)
def test_wrong_instructions_are_found(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        selftest.instructions(replace(AVX512_VNNI, **change))


def test_memory_that_kernels_cannot_take_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "handed", lambda array: array)
    with pytest.raises(EngineError, match=r"is handed to kernels .*does not refuse it"):
        selftest.memory(BEST)
    monkeypatch.setattr(selftest, "placed", lambda array: placed(np.zeros(200, np.uint8))[4:])
    with pytest.raises(EngineError, match="does not begin on a cache line"):
        selftest.memory(BEST)
