"""Kernels are timed on far weights, and what is timed is the kernel."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.tvm.build import compiled, handed, host, placed
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile, convolution
from qcompiler.backends.tvm.measure import LocalBench
from qcompiler.backends.tvm.peak import peak
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.probe import FAR, FEWEST, MOST, arguments_of, probe, turns
from qcompiler.backends.tvm.schedules import ordered
from tests.backends.tvm.sets import BEST
from tests.backends.tvm.test_conv import pytestmark

__all__ = ["pytestmark"]
ISA = BEST


def layer(size: int, inputs: int, outputs: int) -> Convolution:
    x = Plane(images=1, height=size, width=size, channels=inputs, pitch=inputs)
    y = Plane(images=1, height=size, width=size, channels=outputs, pitch=outputs)
    return Convolution(x=x, y=y)


def test_a_probe_runs_the_kernel_on_one_copy_of_the_constants_after_the_other() -> None:
    small = layer(5, 16, 32)
    kernel = convolution(small, ordered(small, ISA)[0], ISA, "kernel")
    given = arguments_of(kernel, small.products)
    assert [(a.name, a.copies > 1) for a in given] == [
        ("x", False), ("weights", True), ("bias", True), ("multiplier", True), ("y", False)
    ]  # fmt: skip
    module = compiled([kernel, probe(kernel, given, "probe")], host())
    draw = np.random.default_rng(0)
    arrays = {a.name: placed(draw.integers(0, 99, a.total).astype(a.dtype)) for a in given}
    arrays["multiplier"][:] = draw.random(len(arrays["multiplier"])) / 1000
    module["probe"](*map(handed, arrays.values()))
    after = arrays["y"].copy()
    last = {a.name: (a.copies - 1) * a.step for a in given}
    alone = [placed(arrays[a.name][last[a.name] :][: a.size]) for a in given]
    alone[-1][:] = 0
    module["kernel"](*map(handed, alone))
    assert np.array_equal(after[: small.y.size - 64], alone[-1][:-64]) and after.any()


def test_weights_are_far_unless_they_do_not_matter() -> None:
    def copies(size: int, inputs: int, outputs: int) -> int:
        one = layer(size, inputs, outputs)
        return turns(arguments_of(convolution(one, Tile(rows=1, columns=1), ISA, "kernel"), one.products))

    assert copies(7, 512, 2048) * 512 * 2048 >= FAR
    assert copies(1, 16, 16) == MOST  # small, and soon done
    assert copies(224, 128, 128) == FEWEST  # small, and at work for long


def test_a_bench_gives_seconds_and_the_peak_is_above_them() -> None:
    one = layer(8, 64, 64)
    bench = LocalBench(one, ordered(one, ISA)[:2], ISA)
    assert all(0 < 2 * one.products / bench.sample(index) < 1.5 * peak(ISA) for index in range(2))


def test_a_clock_that_stands_still_gives_no_infinite_speed() -> None:
    one = layer(8, 16, 16)
    assert LocalBench(one, ordered(one, ISA)[:1], ISA, clock=lambda: 1.0).sample(0) > 0
