"""Convolutions of operands in few bits: exact sums of codes, in all three products."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.ir import columns, convolutions
from qcompiler.ir.products import DEEPEST, summed
from qcompiler.numerics.operands import OPERANDS
from qcompiler.numerics.philox import noise_key, uniform

ops = torch.ops.qcompiler
aten = torch.ops.aten
SETTINGS = ("int8", "int8", None, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution's operands, its gradient, and how it moves."""

    x: Tensor
    w: Tensor
    dy: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int = 1

    @classmethod
    def of(cls, x: Tensor, w: Tensor, stride: int = 1, padding: int = 0, **rest: Any) -> "Layer":
        axes = x.dim() - 2
        dilation = rest.pop("dilation", [1] * axes)
        moves: dict[str, Any] = {"stride": [stride] * axes, "padding": [padding] * axes, "dilation": dilation}
        moves.update(rest)
        y = aten.convolution(x, w, None, *torch_order(**moves))
        return cls(x=x, w=w, dy=torch.randn_like(y), **moves)

    def products(self, settings: Sequence[Any] = SETTINGS) -> list[Tensor]:
        """Forward, grad-input, grad-weight in few bits."""
        moves = (self.stride, self.padding, self.dilation, self.groups)
        pairs = ((self.x, self.w, self.dy), (self.dy, self.w, self.x), (self.dy, self.x, self.w))
        names = ("low_bit_convolution", "low_bit_convolution_input", "low_bit_convolution_weight")
        return [
            getattr(ops, name)(left, right, *settings, *moves, like.shape, like.stride())
            for name, (left, right, like) in zip(names, pairs, strict=True)
        ]

    def exact(self, formats: tuple[str, str] = ("int8", "int8"), key: Tensor | None = None) -> list[Tensor]:
        """The same by torch, in float64 on the codes, rounded to float32 and then scaled."""

        def made(
            x: Tensor, format: str, cut: int, axis: int, noise: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            parts = convolutions.by_group(x, cut, self.groups)
            found = OPERANDS[format](parts, (axis, *range(3, parts.dim())), noise)
            return found.values.flatten(cut, cut + 1).double(), found.scale

        def noise(x: Tensor) -> Tensor | None:
            return None if key is None else uniform(x.numel(), key, tensor=0, purpose=0)

        left, right = formats
        moves = torch_order(self.stride, self.padding, self.dilation, self.groups)
        x, sx = made(self.x, left, 1, 2, noise(self.x))
        w, sw = made(self.w, right, 0, 2)
        y = scaled(aten.convolution(x, w, None, *moves), 1, sx, sw, (2, 0))
        dy, sy = made(self.dy, left, 1, 2, noise(self.dy))
        w, sw = made(self.w, right, 0, 1)
        dx, _, _ = aten.convolution_backward(dy, x, w, None, *moves, [True, False, False])
        dx = scaled(dx, 1, sy, sw, (1, 0))
        dy, sy = made(self.dy, left, 1, 0, noise(self.dy))
        x, sx = made(self.x, right, 1, 0)
        _, dw, _ = aten.convolution_backward(dy, x, w, None, *moves, [False, True, False])
        if sy.dim():
            sy = sy.movedim(0, 2)
        return [y, dx, scaled(dw, 0, sy, sx, (0, 1))]


def torch_order(
    stride: list[int], padding: list[int], dilation: list[int], groups: int = 1
) -> tuple[Any, ...]:
    return stride, padding, dilation, False, [0] * len(stride), groups


def scaled(sums: Tensor, cut: int, left: Tensor, right: Tensor, move: tuple[int, int]) -> Tensor:
    """Sums rounded to float32, times a scale for each group and channel."""
    scale = left * (right.movedim(*move) if right.dim() else right)
    if not scale.dim():
        return sums.float() * scale
    groups: int = scale.shape[cut]
    return (convolutions.by_group(sums.float(), cut, groups) * scale).flatten(cut, cut + 1)


def drawn(draw: random.Random) -> Layer:
    """Any convolution of 1 to 3 dimensions."""
    axes, groups = draw.randint(1, 3), draw.choice((1, 1, 2, 3))
    kernel, stride, dilation, padding = (
        [draw.randint(low, high) for _ in range(axes)] for low, high in ((1, 4), (1, 3), (1, 3), (0, 5))
    )
    sizes = [
        max(1, dilation[axis] * (kernel[axis] - 1) + draw.randint(1, 9) - 2 * padding[axis])
        for axis in range(axes)
    ]
    x = torch.randn(draw.randint(1, 4), groups * draw.randint(1, 5), *sizes)
    w = torch.randn(groups * draw.randint(1, 5), x.shape[1] // groups, *kernel)
    if draw.random() < 0.3 and axes == 2:
        x = x.to(memory_format=torch.channels_last)
    moves: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = aten.convolution(x, w, None, *torch_order(**moves))
    return Layer(x=x, w=w, dy=torch.randn_like(y), **moves)


@pytest.mark.parametrize("are_cut", [False, True])
def test_the_sums_of_codes_are_exact(are_cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and in the smallest pieces: bit for bit what float64 gives."""
    if are_cut:
        monkeypatch.setattr(columns, "CHUNK", 100)
        monkeypatch.setattr(convolutions, "PIECE", 10)
    draw = random.Random(int(are_cut))
    for _ in range(40):
        layer, key = drawn(draw), draw.choice((None, noise_key(3, 1)))
        for found, expected in zip(
            layer.products(("int8", "int8", key, 0, 0)), layer.exact(key=key), strict=True
        ):
            assert torch.equal(found, expected), layer
            assert found.shape == expected.shape


def test_strides_are_those_asked_for() -> None:
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    layer = Layer.of(x, torch.randn(4, 8, 3, 3), padding=1)
    for found, like in zip(layer.products(), (layer.dy, layer.x, layer.w), strict=True):
        assert found.stride() == like.stride()
    assert layer.products()[0].is_contiguous(memory_format=torch.channels_last)


def test_sums_that_int32_does_not_hold() -> None:
    """160,000 times 127^2 is above 2^31: over the samples' positions, and over channels."""
    wide = Layer.of(torch.ones(1, 1, 400, 400), torch.ones(1, 1, 1, 1))
    wide.dy.fill_(1)
    assert DEEPEST < 400 * 400
    assert wide.products()[2].item() == pytest.approx(160000, rel=1e-6)
    deep = Layer.of(torch.ones(1, 160000, 1), torch.ones(1, 160000, 1))
    assert deep.products()[0].item() == pytest.approx(160000, rel=1e-6)


def test_one_row_or_one_column() -> None:
    """The stride along a length of 1 tells nothing, whatever it is."""
    left = torch.randint(-127, 128, (2, 1), dtype=torch.int8)
    right = torch.randint(-127, 128, (486,), dtype=torch.int8).as_strided((1, 486), (1, 1))
    for _ in range(3):
        assert torch.equal(summed(left, right).double(), left.double() @ right.double())


@pytest.mark.parametrize("formats", [("e4m3", "e4m3"), ("e5m2-tensor", "e4m3-tensor"), ("int8", "e4m3")])
def test_floats_of_eight_bits_are_emulated(formats: tuple[str, str]) -> None:
    x, w = torch.randn(3, 8, 9, 9), torch.randn(6, 4, 3, 3)
    layer = Layer.of(x, w, stride=2, padding=1, groups=2)
    for found, expected in zip(layer.products((*formats, None, 0, 0)), layer.exact(formats), strict=True):
        assert (found - expected).norm() / expected.norm() < 3e-7


def test_what_is_not_finite_spoils_its_own_sums_and_no_others() -> None:
    x = torch.randn(3, 4, 6, 6)
    x[1, 2, 0, 0] = torch.inf
    layer = Layer.of(x, torch.randn(5, 4, 3, 3), padding=1)
    layer.dy.normal_()
    y, dx, dw = layer.products()
    assert y.isfinite().all((1, 2, 3)).tolist() == [True, False, True]
    assert dx.isfinite().all()
    assert dw.isfinite().all((0, 2, 3)).tolist() == [True, True, False, True]
    assert y[1].isnan().all()
