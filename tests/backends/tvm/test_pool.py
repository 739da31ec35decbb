"""Pools of our own: equal to the reference to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompiler.backends.reference.formulas import FORMULAS
from qcompiler.backends.reference.kernels import Call, Codes, Output
from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.pool import Average, Pool, average_pool, global_average_pool, max_pool
from qcompiler.backends.tvm.plane import Plane, pitch_of
from tests.backends.tvm.sets import built, pytestmark, some_isa
from tests.backends.tvm.test_conv import filled, inside

__all__ = ["pytestmark"]
aten, qc = torch.ops.aten, torch.ops.qcompiler
X_SCALE, Y_SCALE = torch.tensor(0.037), torch.tensor(0.021)


def plane(images: int, channels: int, size: tuple[int, int]) -> Plane:
    return Plane(
        images=images, height=size[0], width=size[1], channels=channels, pitch=pitch_of(channels), border=1
    )


def called(formula: str, op: Any, x: NDArray[np.uint8], zeros: tuple[int, int], **arguments: Any) -> Any:
    """What the reference makes of codes [N, C, H, W]."""
    x_zero, y_zero = (torch.tensor(zero, dtype=torch.uint8) for zero in zeros)
    codes = Codes(values=torch.from_numpy(x), scale=X_SCALE, zero_point=x_zero, format="uint8")
    output = Output(scale=Y_SCALE, zero_point=y_zero, format="uint8")
    call = Call(operands=[codes], weight=None, bias=None, arguments=arguments, op=op, output=output)
    return FORMULAS[formula](call).numpy()


def run(
    isa: Isa, function: Any, x: Plane, y: Plane, codes: NDArray[np.uint8], *factors: Any
) -> NDArray[np.uint8]:
    # The border holds what would change any result that read it.
    result = placed(np.zeros(y.size, np.uint8))
    numbers = [placed(np.array([factor], np.float32)) for factor in factors]
    built(function, isa)(*map(handed, [filled(x, codes, 255), *numbers, result]))
    return inside(y, result).transpose(0, 3, 1, 2)


@st.composite
def pools(draw: Any, *, dilated: bool) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Arguments as torch takes them, and codes."""
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    dilation = [draw(st.integers(1, 3)) if dilated and k > 2 else 1 for k in kernel]
    size = [d * (k - 1) + 1 + draw(st.integers(0, 9)) for d, k in zip(dilation, kernel, strict=True)]
    shape = (draw(st.integers(1, 2)), draw(st.sampled_from([1, 16, 24, 48, 64, 100])), *size)
    codes = np.random.default_rng(draw(st.integers(0, 1000))).integers(0, 256, shape, np.uint8)
    arguments = {
        "self": None,
        "kernel_size": kernel,
        "stride": [draw(st.integers(1, 3)) for _ in range(2)],
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
    }
    if dilated:
        arguments["dilation"] = dilation
    return arguments | {"ceil_mode": draw(st.booleans())}, codes


def described(arguments: dict[str, Any], codes: NDArray[np.uint8], result: NDArray[np.uint8]) -> Pool:
    images, channels, *size = codes.shape
    height, width = result.shape[2:]
    return Pool(
        x=plane(images, channels, (size[0], size[1])), y=plane(images, channels, (height, width)),
        kernel=tuple(arguments["kernel_size"]), stride=tuple(arguments["stride"]),
        padding=tuple(arguments["padding"]), dilation=tuple(arguments.get("dilation", (1, 1))),
    )  # fmt: skip


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, drawn=pools(dilated=True))
def test_max(isa: Isa, drawn: tuple[dict[str, Any], NDArray[np.uint8]]) -> None:
    arguments, codes = drawn
    wanted = called("max_pool", aten.max_pool2d.default, codes, (3, 3), **arguments)
    pool = described(arguments, codes, wanted)
    assert np.array_equal(run(isa, max_pool(pool, isa, "pool"), pool.x, pool.y, codes), wanted)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa, drawn=pools(dilated=False), zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    include=st.booleans(), divisor=st.sampled_from([None, None, 5]),
)  # fmt: skip
def test_average(isa: Isa, drawn: Any, zeros: tuple[int, int], include: bool, divisor: int | None) -> None:
    arguments, codes = drawn
    arguments |= {"count_include_pad": include, "divisor_override": divisor}
    wanted = called("avg_pool", aten.avg_pool2d.default, codes, zeros, **arguments)
    pool = described(arguments, codes, wanted)
    average = Average(count_include_pad=include, divisor=divisor, x_zero=zeros[0], y_zero=zeros[1])
    found = run(isa, average_pool(pool, average, isa, "pool"), pool.x, pool.y, codes, X_SCALE / Y_SCALE)
    assert np.array_equal(found, wanted)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa,
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)), channels=st.sampled_from([1, 40, 64, 112]),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)), seed=st.integers(0, 1000),
)  # fmt: skip
def test_global(isa: Isa, size: tuple[int, int], channels: int, zeros: tuple[int, int], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 256, (2, channels, *size), np.uint8)
    x, y = plane(2, channels, size), plane(2, channels, (1, 1))
    average = Average(x_zero=zeros[0], y_zero=zeros[1])
    factor = (X_SCALE.double() / (Y_SCALE.double() * size[0] * size[1])).float()
    found = run(isa, global_average_pool(x, y, average, isa, "pool"), x, y, codes, factor)
    assert np.array_equal(found, called("global_avg_pool", None, codes, zeros))
