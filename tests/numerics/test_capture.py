"""What runs inside a captured graph reads no value: it works on tensors that have none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from qcompiler.numerics import (
    MX_BLOCK,
    NVFP4_BLOCK,
    ROW_BLOCK,
    FloatFormat,
    Granularity,
    amax_history,
    cast_fp8,
    compress,
    compress_mask,
    decompress,
    decompress_mask,
    delayed_scale,
    from_fp8,
    leverage_scores,
    mean_step,
    mx_scale,
    noise_key,
    nvfp4_scale,
    parse_format,
    remember_amax,
    round_scaled,
    sample_rows,
    sampling_probabilities,
    split_bits,
    step_codes,
    to_fp8,
    transform,
    uniform,
)


def in_blocks(x: torch.Tensor, scale: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    element = parse_format("e2m1")
    assert isinstance(element, FloatFormat)
    return round_scaled(x, scale, element, granularity, draws(x.numel()))


def draws(count: int) -> torch.Tensor:
    return uniform(count, noise_key(1), tensor=0, purpose=0)


CASES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "uniform": lambda x: draws(x.numel()).view_as(x),
    "compress": lambda x: decompress(*compress(x, 4, draws(x.numel())), 4, x.numel()).view_as(x),
    "compress_mask": lambda x: decompress_mask(compress_mask(x > 0), x.numel()).view_as(x),
    "transform": lambda x: transform(x, 64),
    "step_codes": lambda x: step_codes(x, mean_step(x)),
    "split_bits": lambda x: split_bits(x, draws(x.numel())).value,
    "sample_rows": lambda x: (
        x * sample_rows(sampling_probabilities(leverage_scores(x), len(x) // 2), draws(len(x)))[:, None]
    ),
    "current scaling": lambda x: from_fp8(*to_fp8(x, "e4m3", ROW_BLOCK), ROW_BLOCK),
    "delayed scaling": lambda x: cast_fp8(
        x / delayed_scale(remember_amax(amax_history(), x.abs().amax()), 448.0), "e5m2"
    ),
    "MX": lambda x: in_blocks(x, mx_scale(x, parse_format("e2m1")), MX_BLOCK),
    "NVFP4": lambda x: in_blocks(x, nvfp4_scale(x, rounding="up").scale, NVFP4_BLOCK),
}


@pytest.mark.parametrize("name", CASES)
def test_no_value_is_read(name: str) -> None:
    with FakeTensorMode():
        assert CASES[name](torch.randn(64, 256)).shape == (64, 256)
    assert CASES[name](torch.randn(64, 256)).shape == (64, 256)


def test_a_captured_graph_draws_anew_for_every_key() -> None:
    def save(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        packed, _ = compress(
            x, 4, lambda offset, count: uniform(count, key, tensor=1, purpose=0, offset=offset)
        )
        return packed

    x = torch.randn(70, 256)
    captured = make_fx(save, tracing_mode="fake")(x, noise_key(1, step=1))
    first, second = (captured(x, noise_key(1, step=step)) for step in (1, 2))
    assert torch.equal(first, save(x, noise_key(1, step=1)))
    assert torch.equal(second, save(x, noise_key(1, step=2)))
    assert not torch.equal(first, second)
