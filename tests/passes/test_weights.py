"""Scales of weights: one per channel or group, and no code beyond what a kernel bears."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.numerics import QuantParams, dequantize, quantize
from qcompiler.passes.weights import bias_codes, weight_params, with_room_for_bias
from qcompiler.plan import WeightSpec


def planned(
    format: str = "int8", group_size: int = 0, observer: str = "minmax", limit: int = 0
) -> WeightSpec:
    return WeightSpec(
        layer="layer", argument="weight", format=format, axis=0, group_size=group_size, observer=observer,
        limit=limit,
    )  # fmt: skip


def weight(*shape: int) -> Tensor:
    """Heavy tails, and channels of very different size."""
    spread = torch.logspace(-2, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape) ** 3 * spread


def lost(tensor: Tensor, params: QuantParams) -> Tensor:
    """Squared error per output channel."""
    error = dequantize(quantize(tensor, params), params) - tensor
    return (error.double() ** 2).flatten(1).sum(1)


@pytest.mark.parametrize("shape", [(6, 32), (6, 4, 3), (6, 4, 3, 3), (6, 1, 2, 2, 2)])
def test_one_scale_per_output_channel_from_its_largest_weight(shape: tuple[int, ...]) -> None:
    tensor = weight(*shape)
    params = weight_params(tensor, planned())
    codes = quantize(tensor, params)
    assert params.scale.shape == (6,) and not params.zero_point.any()
    torch.testing.assert_close(params.scale, tensor.abs().flatten(1).amax(1) / 127)
    assert (codes.abs().flatten(1).amax(1) == 127).all()  # -128 is never used


def test_one_scale_per_group_of_inputs() -> None:
    tensor = weight(6, 64)
    params = weight_params(tensor, planned("int4", group_size=16))
    assert params.scale.shape == (6, 4)
    torch.testing.assert_close(params.scale, tensor.reshape(6, 4, 16).abs().amax(2) / 7)


@pytest.mark.parametrize(("format", "group"), [("int8", 0), ("int4", 0), ("int4", 16), ("float8_e4m3fn", 0)])
def test_the_search_is_never_worse_than_the_full_range_in_any_scale(format: str, group: int) -> None:
    tensor = weight(16, 64)
    full, best = (weight_params(tensor, planned(format, group, observer)) for observer in ("minmax", "mse"))
    before, after = lost(tensor, full), lost(tensor, best)
    assert (after <= before).all()
    assert (best.scale <= full.scale).all()
    if format == "int4":
        assert after.sum() < 0.98 * before.sum()  # coarse steps and heavy tails: clipping pays


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_no_code_exceeds_the_limit(observer: str) -> None:
    tensor = weight(8, 32)
    codes = quantize(tensor, weight_params(tensor, planned(observer=observer, limit=64)))
    assert (codes.abs().amax(1) == 64).all()


def test_a_limit_above_the_format_changes_nothing() -> None:
    tensor = weight(8, 32)
    assert weight_params(tensor, planned("int4", limit=64)) == weight_params(tensor, planned("int4"))


def test_a_channel_of_zeros_has_scale_one() -> None:
    tensor = weight(3, 8)
    tensor[1] = 0
    for observer in ("minmax", "mse"):
        params = weight_params(tensor, planned(observer=observer))
        assert params.scale[1] == 1
        assert not quantize(tensor, params)[1].any()


def test_a_bias_is_counted_in_steps_of_both_scales() -> None:
    scales = torch.tensor([0.25, 0.5, 1.0])
    codes = bias_codes(torch.tensor([0.3125, -1.0, 7.5]), 0.5, scales)  # 2.5, -4, 15 steps; ties to even
    assert codes.dtype == torch.int32
    assert codes.tolist() == [2, -4, 15]


def test_a_bias_that_dwarfs_its_weights_keeps_its_value() -> None:
    tensor, bias = torch.randn(3, 8), torch.tensor([0.5, 0.5, 0.0])
    tensor[0] *= 1e-12  # in steps of this channel the bias would be about 1e14
    params = weight_params(tensor, planned())
    roomy = with_room_for_bias(params, bias, 0.01)
    codes = bias_codes(bias, 0.01, roomy.scale)
    steps = 0.01 * roomy.scale.double()
    assert ((codes * steps - bias).abs() <= 0.501 * steps).all()
    assert codes.abs().max() <= 2**30
    assert torch.equal(roomy.scale[1:], params.scale[1:])
