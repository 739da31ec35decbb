"""Candidates judged by what the compiler makes of them, in processes of their own."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler.backends.triton.configurations.products import tile
from qcompiler.backends.triton.tuning.compiling import judged, pool
from qcompiler.backends.triton.tuning.families import space
from qcompiler.backends.triton.tuning.problem import Problem

pytest.importorskip("triton")
pytestmark = pytest.mark.compile_only

PROBLEM = Problem(op="int8_linear", scheme="int8", M=2048, N=4096, K=4096)


def test_what_spills_is_refused_before_it_takes_device_time(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even from a process in which Triton interprets."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    default = space(PROBLEM, 90)[0]
    spilling = replace(default, constants=tile(256, 256, 128, descriptors=False), warps=4, stages=2)
    cache: Path = request.config.cache.mkdir("triton")
    with pool(1) as executor:
        fit, unfit = judged(PROBLEM, [default, spilling], 90, executor, cache)
    assert fit.fault == "" and unfit.fault.startswith("registers are spilled")


def test_ctrl_c_is_not_for_who_compiles() -> None:
    """A compiler that it kills would look like a candidate without code."""
    with pool(1) as executor:
        assert executor.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


OTHERS = [
    replace(PROBLEM, op="weight_only_linear", scheme="w4h_g128", M=1),
    replace(PROBLEM, op="weight_only_linear", scheme="w4h_g128 gated", M=16, heavy=True),
    replace(PROBLEM, op="weight_only_linear", scheme="w4h_g32 gated", M=16, heavy=True),
    replace(PROBLEM, op="fp8_block_linear", scheme="e4m3"),
    replace(PROBLEM, op="quantize_rows", N=0),
    replace(PROBLEM, op="quantize_by_amax", N=0),
    replace(PROBLEM, op="quantize_by_scale", scheme="e4m3", N=0),
    replace(PROBLEM, op="quantize_blocks", scheme="e4m3", N=0),
    replace(PROBLEM, op="quantize_both", scheme="int8 drawn", N=0),
    replace(PROBLEM, op="norm_quantize", scheme="int8 rms residual", N=0),
    replace(PROBLEM, op="hadamard_quantize", scheme="int8 256", N=0),
]


def test_the_default_of_every_problem_is_fit(request: pytest.FixtureRequest) -> None:
    """Compiled for what the problem says, which are not the uses that the tables are held to."""
    cache: Path = request.config.cache.mkdir("triton")
    with pool(1) as executor:
        for problem in OTHERS:
            (found,) = judged(problem, space(problem, 90)[:1], 90, executor, cache)
            assert found.fault == "", problem.text
