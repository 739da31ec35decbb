"""Linears with weights of few bits: equal to the reference to the last bit, whatever the shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.backends.reference.kernels import Codes, weight_only_linear
from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.gemv import Gemv, by_register, gemv, pack
from qcompiler.backends.tvm.kernels.rounding import rounded
from qcompiler.backends.tvm.plane import SPARE, Plane
from tests.backends.tvm.sets import built, pytestmark, some_isa

__all__ = ["pytestmark"]


@dataclass(frozen=True)
class Drawn:
    """Weights as the graph holds them, and what else a linear reads."""

    x: Tensor
    weight: Codes
    bias: Tensor | None
    residual: Tensor | None


def lines(rows: int, channels: int, pitch: int) -> Plane:
    return Plane(images=1, height=1, width=rows, channels=channels, pitch=pitch)


def drawn(layer: Gemv, seed: int, *, signed: bool) -> Drawn:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(layer.rows, layer.inputs, generator=g) * torch.rand(layer.rows, 1, generator=g) * 3
    if seed % 3 == 0:
        x[0, : layer.block] = 0  # a block without a scale
    low = -(2 ** (layer.bits - 1)) if signed else 0
    shape = (layer.outputs, layer.inputs)
    codes = torch.randint(low, low + 2**layer.bits, shape, generator=g)
    kind = torch.int8 if signed else torch.uint8
    steps = (layer.outputs,) if layer.per_column else (layer.outputs, layer.blocks)
    scale = torch.rand(steps, generator=g) * 0.1
    if layer.scales == "float16":
        scale = scale.half().float()
    zeros = torch.zeros(steps, dtype=kind)
    if layer.zero is None:
        zeros = torch.randint(0, 2**layer.bits, steps, generator=g).to(kind)
    weight = Codes(
        values=codes.to(kind), scale=scale, zero_point=zeros,
        format=f"{'' if signed else 'u'}int{layer.bits}",
        axis=0 if layer.per_column else 1, block=0 if layer.per_column else layer.block,
    )  # fmt: skip
    return Drawn(
        x=x, weight=weight,
        bias=torch.randn(layer.outputs, generator=g) if layer.bias else None,
        residual=torch.randn(layer.rows, layer.outputs, generator=g) if layer.residual else None,
    )  # fmt: skip


def filled(plane: Plane, rows: Tensor) -> NDArray[np.float32]:
    """Rows on their plane, NaN between and behind them."""
    memory = np.full(plane.size, np.nan, np.float32)
    memory[:-SPARE].reshape(len(rows), plane.pitch)[:, : rows.shape[1]] = rows.numpy()
    return placed(memory)


def run(layer: Gemv, given_: Drawn, isa: Isa) -> Tensor:
    shift = layer.zero or 0
    codes = (given_.weight.values.to(torch.int32) + shift).to(torch.uint8).numpy()
    steps = given_.weight.scale.numpy().reshape(layer.outputs, -1).astype(layer.scales)
    count = placed(np.array([layer.blocks], np.int32))
    constants = [count, placed(pack(layer, codes, isa)), placed(by_register(steps, isa))]
    if layer.zero is None:
        constants.append(placed(by_register(given_.weight.zero_point.numpy(), isa)))
    if layer.takes_bias:
        bias = torch.zeros(layer.outputs) if given_.bias is None else given_.bias
        constants.append(placed(by_register(bias.numpy()[:, None], isa)))
    if given_.residual is not None and layer.residual is not None:
        constants.append(filled(layer.residual, given_.residual))
    x, y = filled(layer.x, given_.x), placed(np.zeros(layer.y.size, np.float32))
    between = [placed(np.full(plane.size, 99, kind)) for plane, kind in layer.rounding.planes]
    built(rounded(layer.rounding, isa, "rounded"), isa)(*map(handed, (x, *between)))
    built(gemv(layer, isa, "gemv"), isa)(*map(handed, (*between, *constants, y)))
    return torch.from_numpy(y[:-SPARE].reshape(layer.rows, -1)[:, : layer.outputs].copy())


def wanted(layer: Gemv, given_: Drawn) -> Tensor:
    y = weight_only_linear(given_.x, given_.weight, given_.bias, bits=8, block=layer.block)
    return y if given_.residual is None else y + given_.residual


@st.composite
def layers(draw: st.DrawFn) -> tuple[Gemv, bool]:
    bits: Literal[4, 8] = draw(st.sampled_from([4, 8]))
    block = draw(st.sampled_from([16, 32, 64, 128]))
    inputs, outputs = draw(st.integers(1, 400)), draw(st.integers(1, 200))
    per_column, signed = draw(st.booleans()), draw(st.booleans())
    has_zeros = not signed and not per_column
    rows, up = draw(st.just(1) | st.integers(2, 9)), -(-outputs // 16) * 16  # one row has a tile of its own
    layer = Gemv(
        x=lines(rows, inputs, inputs + draw(st.integers(0, 20))),
        y=lines(rows, outputs, up + draw(st.integers(0, 5))),
        residual=draw(st.none() | st.just(lines(rows, outputs, up + 3))),
        bits=bits, block=block, per_column=per_column,
        zero=None if has_zeros else 2 ** (bits - 1) if signed else 0,
        scales=draw(st.sampled_from(["float32", "float16"])), bias=draw(st.booleans()),
    )  # fmt: skip
    return layer, signed


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, drawn_layer=layers(), seed=st.integers(0, 10_000))
def test_equals_the_reference(isa: Isa, drawn_layer: tuple[Gemv, bool], seed: int) -> None:
    layer, signed = drawn_layer
    given_ = drawn(layer, seed, signed=signed)
    assert torch.equal(run(layer, given_, isa), wanted(layer, given_))
