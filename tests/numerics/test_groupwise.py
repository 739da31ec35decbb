"""Compressed activations: the bounds, what comes back, and that its mean is what went in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.numerics import (
    Noise,
    compress,
    compress_mask,
    compressed_bytes,
    decompress,
    decompress_mask,
    measure_bias,
    noise_key,
    uniform,
    unpack,
)

BITS = [8, 4, 2, 1]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
# within these, no range exceeds bfloat16
values = st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=70)


def draws(offset: int, count: int) -> Tensor:
    return uniform(count, noise_key(3), tensor=1, purpose=0, offset=offset)


def restored(x: Tensor, bits: int, noise: Noise | None = None, group: int = 256) -> Tensor:
    return decompress(*compress(x, bits, noise, group), bits, x.numel(), group)


@given(x=values, bits=st.sampled_from(BITS))
def test_bounds_are_the_narrowest_that_hold_the_group(x: list[float], bits: int) -> None:
    steps = 2**bits - 1
    whole = torch.tensor(x)
    _, bounds = compress(whole, bits, None, 32)
    for index, (lowest, scale) in enumerate(bounds):
        part = whole[32 * index : 32 * (index + 1)]
        above = torch.nextafter(lowest, lowest.new_tensor(torch.inf))
        assert lowest.float() <= part.min() < above.float()
        span = part.max() - lowest.float()
        assert scale.float() * steps >= span
        assert scale == 0 or torch.nextafter(scale, scale.new_tensor(0)).float() * steps < span


@given(x=values, bits=st.sampled_from(BITS), u=st.sampled_from([None, 0.0, 0.5, 1 - 2**-24]))
def test_codes_are_the_definition_and_nothing_clips(x: list[float], bits: int, u: float | None) -> None:
    whole = torch.tensor(x)
    noise = None if u is None else torch.full_like(whole, u)
    packed, bounds = compress(whole, bits, noise, 32)
    codes = unpack(packed, bits, packed.numel() * 8 // bits, signed=False)[: len(x)]
    lowest, scale = (bounds.float().repeat_interleave(32, 0)[: len(x), column] for column in (0, 1))
    t = torch.where(scale == 0, 0, (whole - lowest) / scale)
    assert bool(((t >= 0) & (t <= 2**bits - 1)).all())
    floor = t.floor()
    expected = t.round() if noise is None else floor + (noise < t - floor)
    assert torch.equal(codes.float(), expected)
    assert torch.equal(decompress(packed, bounds, bits, len(x), 32), codes * scale + lowest)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", BITS)
def test_a_constant_group_comes_back_exactly(dtype: torch.dtype, bits: int) -> None:
    for value in (0.0, -1.5, 1024.0, 2**-14):
        x = torch.full((300,), value, dtype=dtype)
        packed, bounds = compress(x, bits, draws)
        assert not bounds[:, 1].any() and not packed.any()
        assert torch.equal(decompress(packed, bounds, bits, 300, dtype=dtype), x)


@pytest.mark.parametrize("magnitude", [1e-40, 1e-30, 1e-6, 1e6, 1e30])
def test_no_magnitude_is_special(magnitude: float) -> None:
    # bfloat16 has 8 bits down to 2^-126; below that a step of 2^-133 is what the range can be off by
    x = torch.rand(512) * magnitude
    step = x.max() / 255 * (1 + 2**-6) + 2**-133
    assert bool(((restored(x, 8) - x).abs() <= 0.51 * step).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("poison", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_group_and_no_other(
    dtype: torch.dtype, bits: int, poison: float
) -> None:
    for place in (256, 300, 511):
        x = torch.randn(3 * 256 + 7).to(dtype)
        clean = restored(x, bits, torch.full((x.numel(),), 0.5))
        x[place] = poison
        spoiled = restored(x, bits, torch.full((x.numel(),), 0.5))
        assert not spoiled[256:512].isfinite().any()
        assert torch.equal(spoiled[:256], clean[:256]) and torch.equal(spoiled[512:], clean[512:])


@pytest.mark.parametrize("bits", BITS)
def test_order_is_the_logical_one_and_parts_of_the_work_do_not_show(bits: int) -> None:
    # more elements than are computed together, a short last group, and strides
    x = torch.randn(513, 341).T
    noise = draws(0, x.numel())
    packed, bounds = compress(x, bits, noise)
    for other in (x.contiguous(), x.contiguous().flatten()):
        for source in (noise, draws, torch.cat((noise, torch.ones(9)))):
            again = compress(other, bits, source)
            assert torch.equal(again[0], packed) and torch.equal(again[1], bounds)
    part = slice(256 * 300, 256 * 301)
    alone, _ = compress(x.flatten()[part], bits, noise[part])
    assert torch.equal(alone, packed[300 * 32 * bits : 301 * 32 * bits])


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 140_000])
@pytest.mark.parametrize("bits", BITS)
def test_sizes_are_those_promised(count: int, bits: int) -> None:
    packed, bounds = compress(torch.randn(count), bits, None)
    assert packed.numel() + 2 * bounds.numel() == compressed_bytes(count, bits)
    assert decompress(packed, bounds, bits, count).shape == (count,)


def test_overhead_is_an_eighth_of_a_bit() -> None:
    ratios = [4 * 2**20 / compressed_bytes(2**20, bits) for bits in (8, 4, 2)]
    assert ratios == pytest.approx([3.94, 7.76, 15.06], abs=0.005)


def normal(groups: int) -> Tensor:
    return torch.randn(groups, 256) * 2 + 1


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_mean_of_draws_is_the_tensor(bits: int) -> None:
    x = normal(4)
    many = restored(x.expand(1000, -1, -1), bits, draws).view(1000, -1)
    found = measure_bias(many, x)
    # a standard normal number: above 4 once in 30,000 such tests
    assert found.z < 4
    assert found.bias == pytest.approx(found.floor, rel=0.1)


@pytest.mark.parametrize("bits", [8, 4])
def test_bounds_rounded_after_use_are_a_bias_that_is_found(bits: int) -> None:
    x, steps = normal(4), 2**bits - 1
    lowest, highest = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = (highest - lowest) / steps
    t = ((x - lowest) / scale).expand(1000, -1, -1)
    codes = (t.floor() + (draws(0, t.numel()).view_as(t) < t - t.floor())).clamp(0, steps)
    many = codes * scale.bfloat16().float() + lowest.bfloat16().float()
    found = measure_bias(many, x)
    assert found.z > 10
    assert found.bias == pytest.approx({8: 0.0060, 4: 0.0066}[bits], rel=0.5)


@pytest.mark.parametrize(("bits", "mean"), [(8, 0.164), (4, 0.172), (2, 0.177)])
def test_variance_is_at_most_a_quarter_of_a_step(bits: int, mean: float) -> None:
    count = 4000
    x = normal(1)
    many = restored(x.expand(count, -1), bits, draws).view(count, -1)
    scale = compress(x, bits, None)[1][0, 1].float()
    variance = (many.double().var(0) / scale.double() ** 2).squeeze()
    # two neighbours cannot vary more, in a sample either; the last digits are those of q s + m in float32
    assert variance.max() <= 0.25 * count / (count - 1) * (1 + 1e-3)
    # fractions are nearly uniform, which would make 1/6
    assert variance.mean().item() == pytest.approx(mean, rel=0.1)


def gelu_slope(x: Tensor) -> Tensor:
    phi = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * phi


@pytest.mark.parametrize("bits", [4, 2])
def test_a_saved_derivative_gives_the_gradient_and_a_saved_input_does_not(bits: int) -> None:
    x, gradient, count = torch.randn(16, 256), torch.randn(16, 256), 600
    exact = gradient * gelu_slope(x)
    inputs = restored(x.expand(count, -1, -1), bits, draws).view(count, 16, 256)
    slopes = restored(gelu_slope(x).expand(count, -1, -1), bits, draws).view(count, 16, 256)
    assert measure_bias(gradient * gelu_slope(inputs), exact).z > 8
    assert measure_bias(gradient * slopes, exact).z < 4


@given(count=st.integers(0, 70), seed=st.integers(0, 9))
def test_masks_are_lossless(count: int, seed: int) -> None:
    mask = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = compress_mask(mask)
    assert packed.shape == (-(-count // 8),)
    assert torch.equal(decompress_mask(packed, count), mask)
    for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.int64):
        assert torch.equal(compress_mask(mask.to(dtype)), packed)


def test_a_long_mask_and_a_transposed_one() -> None:
    mask = torch.rand(1001, 1003) < 0.3
    assert torch.equal(decompress_mask(compress_mask(mask), mask.numel()), mask.flatten())
    assert torch.equal(decompress_mask(compress_mask(mask.T), mask.numel()), mask.T.flatten())
    # a slice that begins in the middle of a word
    assert torch.equal(decompress_mask(compress_mask(mask.flatten()[3:67]), 64), mask.flatten()[3:67])


@pytest.mark.parametrize(
    ("x", "bits", "noise", "group"),
    [
        (torch.ones(4, dtype=torch.int32), 4, None, 256),
        (torch.ones(4), 3, None, 256),
        (torch.ones(4), 4, None, 48),
        (torch.ones(4), 4, torch.ones(3), 256),
        (torch.ones(4), 4, torch.ones(4, dtype=torch.float64), 256),
    ],
)
def test_what_does_not_fit_is_refused(x: Tensor, bits: int, noise: Tensor | None, group: int) -> None:
    with pytest.raises(InputError):
        compress(x, bits, noise, group)


def test_wrong_lengths_are_refused() -> None:
    packed, bounds = compress(torch.ones(600), 4, None)
    for count in (512, 769):
        with pytest.raises(InputError):
            decompress(packed, bounds, 4, count)
    with pytest.raises(InputError):
        decompress_mask(torch.zeros(2, dtype=torch.uint8), 17)
