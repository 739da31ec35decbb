"""Sums, products, tables and concatenations of our own: equal to the reference to the last bit."""

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
from qcompiler.backends.tvm.kernels.add import Pair, Zeros, add, concatenate, multiply, table
from qcompiler.backends.tvm.plane import Plane, pitch_of
from tests.backends.tvm.sets import built, pytestmark, some_isa
from tests.backends.tvm.test_conv import filled, inside
from tests.backends.tvm.test_depthwise import border_kept

__all__ = ["pytestmark"]
Sizes = tuple[int, int, int, int]


def plane(sizes: Sizes, *, wider: int = 0, border: int = 1) -> Plane:
    images, channels, height, width = sizes
    return Plane(
        images=images,
        height=height,
        width=width,
        channels=channels,
        pitch=pitch_of(channels) + wider,
        border=border,
    )


def quantized(values: NDArray[np.uint8], scale: float, zero: int) -> Codes:
    zero_point = torch.tensor(zero, dtype=torch.uint8)
    return Codes(
        values=torch.from_numpy(values), scale=torch.tensor(scale), zero_point=zero_point, format="uint8"
    )


def called(
    formula: str, operands: list[Codes], scale: float, zero: int, op: Any = None, **arguments: Any
) -> NDArray[np.uint8]:
    output = Output(
        scale=torch.tensor(scale), zero_point=torch.tensor(zero, dtype=torch.uint8), format="uint8"
    )
    call = Call(operands=operands, weight=None, bias=None, arguments=arguments, op=op, output=output)
    return np.asarray(FORMULAS[formula](call))


def run(isa: Isa, function: Any, arguments: list[NDArray[Any]], y: Plane) -> NDArray[np.uint8]:
    memory = placed(np.full(y.size, 99, np.uint8))
    built(function, isa)(*map(handed, [*arguments, memory]))
    result = inside(y, memory).copy()
    assert border_kept(y, memory)
    return result.transpose(0, 3, 1, 2)


def random(sizes: Sizes, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, sizes, np.uint8)


SIZES = st.tuples(
    st.integers(1, 2), st.sampled_from([1, 16, 40, 64, 100]), st.integers(1, 9), st.integers(1, 9)
)
SEEDS = st.integers(0, 10_000)
ZEROS = st.tuples(*[st.integers(0, 255)] * 3)
SCALES = st.tuples(*[st.floats(2**-7, 2**-3, width=32)] * 3)
WIDER = st.sampled_from([0, 16])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, sizes=SIZES, wider=WIDER, scales=SCALES, zeros=ZEROS, seed=SEEDS)
def test_add(isa: Isa, sizes: Sizes, wider: int, scales: Any, zeros: Any, seed: int) -> None:
    pair = Pair(a=plane(sizes, border=0), b=plane(sizes, wider=wider), y=plane(sizes))
    a, b = random(sizes, seed), random(sizes, seed + 1)
    ratio_a, ratio_b = (np.float32(s) / np.float32(scales[2]) for s in scales[:2])
    # As the reference: the second product is rounded, the first joins it in a fused multiply-add.
    second = np.float32(ratio_b * np.float32(zeros[1]))
    both = np.float32(float(zeros[0]) * float(ratio_a) + float(second))
    numbers = np.array([ratio_a, ratio_b, np.float32(zeros[2]) - both], np.float32)
    operands = [quantized(a, scales[0], zeros[0]), quantized(b, scales[1], zeros[1])]
    given_ = [filled(pair.a, a, 0), filled(pair.b, b, 0), placed(numbers)]
    found = run(isa, add(pair, isa, "kernel"), given_, pair.y)
    assert np.array_equal(found, called("add", operands, scales[2], zeros[2]))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, sizes=SIZES, wider=WIDER, scales=SCALES, zeros=ZEROS, seed=SEEDS)
def test_multiply(isa: Isa, sizes: Sizes, wider: int, scales: Any, zeros: Any, seed: int) -> None:
    pair = Pair(a=plane(sizes, border=0), b=plane(sizes, wider=wider), y=plane(sizes))
    a, b = random(sizes, seed), random(sizes, seed + 1)
    operands = [quantized(a, scales[0], zeros[0]), quantized(b, scales[1], zeros[1])]
    given_ = [filled(pair.a, a, 0), filled(pair.b, b, 0), placed(np.array(scales, np.float32))]
    function = multiply(pair, Zeros(a=zeros[0], b=zeros[1], y=zeros[2]), isa, "kernel")
    assert np.array_equal(run(isa, function, given_, pair.y), called("mul", operands, scales[2], zeros[2]))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa, sizes=SIZES, one=st.sets(st.sampled_from([0, 2, 3])), second=st.booleans(),
    wider=WIDER, scales=SCALES, zeros=ZEROS, seed=SEEDS,
)  # fmt: skip
def test_multiply_by_what_is_repeated(
    isa: Isa, sizes: Sizes, one: set[int], second: bool, wider: int, scales: Any, zeros: Any, seed: int
) -> None:
    """One operand has a single image, line or pixel where the other has several."""
    few = tuple(1 if axis in one else size for axis, size in enumerate(sizes))
    shapes: list[Any] = [sizes, few] if second else [few, sizes]
    planes = [plane(shape, wider=more, border=1) for shape, more in zip(shapes, (0, wider), strict=True)]
    pair = Pair(a=planes[0], b=planes[1], y=plane(sizes))
    codes = [random(shape, seed + i) for i, shape in enumerate(shapes)]
    operands = [quantized(*each) for each in zip(codes, scales[:2], zeros[:2], strict=True)]
    laid = [filled(*each, 0) for each in zip(planes, codes, strict=True)]
    function = multiply(pair, Zeros(a=zeros[0], b=zeros[1], y=zeros[2]), isa, "kernel")
    found = run(isa, function, [*laid, placed(np.array(scales, np.float32))], pair.y)
    assert np.array_equal(found, called("mul", operands, scales[2], zeros[2]))


def entries(op: Any, scales: tuple[float, float], zeros: tuple[int, int]) -> NDArray[np.uint8]:
    """The table of the reference: every code once."""
    every = quantized(np.arange(256, dtype=np.uint8), scales[0], zeros[0])
    return called("unary", [every], scales[1], zeros[1], op)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, sizes=SIZES, wider=WIDER, seed=SEEDS)
def test_table(isa: Isa, sizes: Sizes, wider: int, seed: int) -> None:
    x, y, codes = plane(sizes, wider=wider), plane(sizes), random(sizes, seed)
    op = torch.ops.aten.hardswish.default
    held = entries(op, (0.05, 0.03), (128, 10))
    found = run(isa, table(x, y, isa, "kernel"), [filled(x, codes, 0), placed(held)], y)
    assert np.array_equal(found, called("unary", [quantized(codes, 0.05, 128)], 0.03, 10, op))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa,
    sizes=SIZES, widths=st.lists(st.sampled_from([1, 5, 16, 24, 48, 64, 67]), min_size=1, max_size=4),
    seed=SEEDS,
)  # fmt: skip
def test_concatenate(isa: Isa, sizes: Sizes, widths: list[int], seed: int) -> None:
    each = [(sizes[0], width, *sizes[2:]) for width in widths]
    inputs, y = tuple(plane(size) for size in each), plane((sizes[0], sum(widths), *sizes[2:]))
    arguments, tables, operands = [], [], []
    for i, (size, x) in enumerate(zip(each, inputs, strict=True)):
        codes, scale, zero = random(size, seed + i), 0.02 + 0.01 * i, 7 * i
        operands.append(quantized(codes, scale, zero))
        held = entries(torch.ops.aten.alias.default, (scale, 0.04), (zero, 20))
        arguments.append(filled(x, codes, 0))
        tables.append(placed(held))
    found = run(isa, concatenate(inputs, y, isa, "kernel"), [*arguments, *tables], y)
    assert np.array_equal(found, called("concat", operands, 0.04, 20, dim=1))
