"""The error of each format on one fixed normal sample, pinned, next to what theory says."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.numerics import (
    PerTensor,
    QuantParams,
    fake_quantize,
    mx_params,
    nvfp4_params,
    params_from_range,
    parse_format,
    sqnr,
)


@pytest.fixture(scope="module")
def sample() -> torch.Tensor:
    return torch.randn(100_000, generator=torch.Generator().manual_seed(0))


def minmax(x: torch.Tensor, name: str) -> QuantParams:
    return params_from_range(x.min(), x.max(), parse_format(name), PerTensor(), scheme="symmetric")


def figure(x: torch.Tensor, name: str) -> float:
    if name == "nvfp4":
        return sqnr(x, fake_quantize(x, nvfp4_params(x).params))
    if name.startswith("mx"):
        _, element, rule = name.split("-")
        return sqnr(x, fake_quantize(x, mx_params(x, parse_format(element), rule=rule)))  # type: ignore[arg-type]
    return sqnr(x, fake_quantize(x, minmax(x, name)))


PINNED = {
    "int8": 39.68,
    "int6": 27.47,
    "int4": 14.53,
    "e2m5": 42.63,
    "e3m4": 37.54,
    "e4m3": 31.52,
    "e5m2": 25.61,
    "e2m3": 30.51,
    "e3m2": 25.61,
    "e2m1": 17.83,
    "mx-int8-rceil": 41.61,
    "mx-e4m3-rceil": 31.53,
    "mx-e4m3-floor": 30.66,
    "mx-e5m2-rceil": 25.52,
    "mx-e2m3-rceil": 30.96,
    "mx-e3m2-rceil": 25.52,
    "mx-e2m1-rceil": 18.73,
    "mx-e2m1-floor": 18.80,
    "mx-e2m1-even": 19.03,
    "nvfp4": 20.38,
}
# dB


@pytest.mark.parametrize("name", PINNED)
def test_the_error_of_a_format_does_not_change(sample: torch.Tensor, name: str) -> None:
    assert figure(sample, name) == pytest.approx(PINNED[name], abs=0.05)


@pytest.mark.parametrize("bits", [4, 6, 8, 10, 12])
def test_integer_noise_is_a_twelfth_of_the_step_squared(sample: torch.Tensor, bits: int) -> None:
    step = minmax(sample, f"int{bits}").scale.item()
    theory = 10 * math.log10(sample.double().square().mean().item() / (step**2 / 12))
    assert figure(sample, f"int{bits}") == pytest.approx(theory, abs=0.1)


def test_a_bit_is_six_decibels(sample: torch.Tensor) -> None:
    # the step halves up to the restricted range: (2^15 - 1) / (2^7 - 1) between int8 and int16
    gain = figure(sample, "int16") - figure(sample, "int8")
    assert gain == pytest.approx(20 * math.log10((2**15 - 1) / (2**7 - 1)), abs=0.1)
    assert gain / 8 == pytest.approx(6.02, abs=0.02)


@pytest.mark.parametrize(("name", "mantissa_bits"), [("e5m2", 2), ("e4m3", 3), ("e5m10", 10)])
def test_float_noise_follows_the_binades(sample: torch.Tensor, name: str, mantissa_bits: int) -> None:
    # in the binade [2^k, 2^(k+1)) the step is 2^(k-M), and the noise a twelfth of its square
    scaled = (sample / minmax(sample, name).scale).double()
    leading = 2.0 ** (torch.frexp(scaled).exponent - 1).double()
    noise = (leading * 2.0**-mantissa_bits).square().mean() / 12
    theory = 10 * math.log10((scaled.square().mean() / noise).item())
    assert figure(sample, name) == pytest.approx(theory, abs=0.1)


def test_a_scale_per_block_pays_where_it_is_fine_enough(sample: torch.Tensor) -> None:
    # four bits: E4M3 scales of 16 beat powers of two of 32, which beat one scale for all
    assert figure(sample, "nvfp4") > figure(sample, "mx-e2m1-rceil") + 1 > figure(sample, "e2m1") + 1
