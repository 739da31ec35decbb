"""Ranges from histograms, against direct computation on the data itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import gelu, silu

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics import (
    CANDIDATES,
    Format,
    Histogram,
    PerTensor,
    Scheme,
    best_range,
    candidates,
    expected_error,
    fake_quantize,
    kl_range,
    minmax_range,
    mse,
    mse_range,
    params_from_range,
    parse_format,
    percentile_range,
)
from qcompiler.numerics.observers.histogram import FloatArray

Of = Callable[[torch.Tensor], torch.Tensor]
DATA: dict[str, Callable[[], torch.Tensor]] = {
    "normal": lambda: torch.randn(50_000),
    "relu": lambda: torch.randn(50_000).relu(),
    "heavy": lambda: torch.randn(50_000).exp() - torch.randn(50_000).exp(),
    "outlier": lambda: torch.cat([torch.randn(50_000), torch.tensor([40.0])]),
    "negative": lambda: -torch.rand(50_000) - 0.1,
    "skewed": lambda: torch.nn.functional.silu(torch.randn(50_000) * 3),
}
SETTINGS: list[tuple[str, Scheme]] = [
    ("uint8", "asymmetric"),
    ("int8", "symmetric"),
    ("int4", "symmetric"),
    ("uint4", "asymmetric"),
    ("uint8", "one_sided"),
    ("int8", "power_of_two"),
    ("e4m3", "symmetric"),
    ("e2m1", "symmetric"),
]


def histogram(x: torch.Tensor) -> Histogram:
    h = Histogram()
    h.observe(x)
    return h


def true_error(x: torch.Tensor, lo: float, hi: float, format: Format, scheme: Scheme) -> float:
    return mse(x, fake_quantize(x, params_from_range(lo, hi, format, PerTensor(), scheme=scheme)))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(("format", "scheme"), SETTINGS)
def test_the_chosen_range_is_never_worse_than_minmax(name: str, format: str, scheme: Scheme) -> None:
    h = histogram(DATA[name]())
    chosen, (lo, hi), scores = best_range(h, parse_format(format), scheme)
    assert scores[chosen] == min(scores.values()) <= scores["minmax"]
    assert scores[chosen] == pytest.approx(expected_error(h, lo, hi, parse_format(format), scheme))
    assert {"minmax", "mse"} <= set(scores) <= set(CANDIDATES)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    ("format", "scheme"), [("uint8", "asymmetric"), ("int4", "symmetric"), ("e4m3", "symmetric")]
)
def test_the_expected_error_is_that_of_the_data(name: str, format: str, scheme: Scheme) -> None:
    x = DATA[name]()
    h, f = histogram(x), parse_format(format)
    for lo, hi in candidates(h, f, scheme).values():
        estimate = math.sqrt(expected_error(h, lo, hi, f, scheme))
        truth = math.sqrt(true_error(x, lo, hi, f, scheme))
        # the distance to the nearest code moves no further than the element to its bin's middle
        assert abs(estimate - truth) <= h.width / 2


@pytest.mark.parametrize(("format", "scheme"), SETTINGS)
def test_mse_finds_what_a_fine_search_on_the_data_finds(format: str, scheme: Scheme) -> None:
    x, f = torch.randn(10_000), parse_format(format)
    h = histogram(x)
    found = true_error(x, *mse_range(h, f, scheme), f, scheme)
    best = min(true_error(x, h.low * c, h.high * c, f, scheme) for c in np.linspace(0.2, 1, 81))
    assert found <= best * 1.02  # the histogram's own resolution


def test_mse_moves_both_ends() -> None:
    x = torch.cat([torch.rand(10_000) * 2 - 1, torch.tensor([6.0])])
    lo, hi = mse_range(histogram(x), parse_format("uint4"), "asymmetric")
    assert (
        -1.1 < lo < -0.85 and 0.85 < hi < 1.5
    )  # shrinking both by one factor would have to give up the left


@pytest.mark.parametrize("name", ["heavy", "outlier", "skewed"])
@pytest.mark.parametrize("format", ["uint4", "uint8"])
def test_moving_one_end_of_the_mse_range_gains_nothing(name: str, format: str) -> None:
    h, f = histogram(DATA[name]()), parse_format(format)
    lo, hi = mse_range(h, f, "asymmetric")
    found = expected_error(h, lo, hi, f, "asymmetric")
    for factor in np.linspace(0.8, 1.25, 46):
        for low, high in ((lo * factor, hi), (lo, hi * factor)):
            assert found <= expected_error(h, low, high, f, "asymmetric") * 1.01


@pytest.mark.parametrize(("format", "levels"), [("int4", 15), ("int6", 63)])
def test_optimal_clipping_of_a_normal_is_that_of_the_density(format: str, levels: int) -> None:
    z = np.linspace(-8, 8, 100_001)
    density = np.exp(-z * z / 2)

    def noise(step: float) -> float:
        top = levels // 2
        return float(np.sum(density * (z - step * np.clip(np.rint(z / step), -top, top)) ** 2))

    expected = min(np.linspace(2, 4, 201), key=lambda reach: noise(reach / (levels // 2)))
    found = mse_range(histogram(torch.randn(1_000_000)), parse_format(format), "symmetric")[1]
    assert found == pytest.approx(expected, rel=0.02)  # a sample's minimum is flat


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200),
    p=st.sampled_from([51.0, 90.0, 99.0, 99.9, 100.0]),
)
def test_a_percentile_drops_what_it_may_and_no_more(values: list[float], p: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    h = histogram(x)
    lo, hi = percentile_range(h, p)
    allowed = len(values) * (100 - Fraction(str(p))) / 100
    edges = np.append(h.centers - h.width / 2, h.centers[-1] + h.width / 2)
    below = np.append(0, np.cumsum(h.counts))
    assert hi == min(h.high, edges[h.count - below <= allowed].min())
    assert lo == (max(h.low, edges[below <= allowed].max()) if h.low < 0 else h.low)


def test_the_hundredth_percentile_is_minmax() -> None:
    h = histogram(torch.randn(1000))
    assert percentile_range(h, 100.0) == minmax_range(h)


def kl_by_definition(x: torch.Tensor, levels: int) -> float:
    """The published procedure, one cut and one bin at a time."""
    h = histogram(x)
    magnitudes = np.floor(np.abs(x.double().numpy()) / h.width).astype(int)
    hist = np.bincount(magnitudes).astype(float)
    best, threshold = math.inf, 0.0
    for cut in range(min(levels, len(hist)), len(hist) + 1):
        p = hist[:cut].copy()
        p[-1] += hist[cut:].sum()
        q = np.zeros(cut)
        for level in range(levels):
            stretch = slice(cut * level // levels, cut * (level + 1) // levels)
            filled = hist[stretch] > 0
            q[stretch][filled] = hist[stretch].sum() / max(filled.sum(), 1)
        p, q, used = p / p.sum(), q / max(q.sum(), 1e-300), p > 0
        if np.all(q[used] > 0):
            divergence = float(np.sum(p[used] * np.log(p[used] / q[used])))
            if divergence < best - 1e-12:
                best, threshold = divergence, cut * h.width
    return min(threshold, float(x.abs().max()))


@pytest.mark.parametrize("name", ["normal", "relu", "heavy", "outlier"])
@pytest.mark.parametrize("format", ["int4", "uint4", "int8"])
def test_kl_is_its_definition(name: str, format: str) -> None:
    x, f = DATA[name]()[-2000:], parse_format(format)
    lo, hi = kl_range(histogram(x), f)
    assert hi == pytest.approx(kl_by_definition(x, {"int4": 8, "uint4": 16, "int8": 128}[format]))
    assert lo == (0 if name == "relu" else -hi)


def test_kl_clips_an_outlier() -> None:
    x = torch.cat([torch.randn(50_000), torch.tensor([40.0])])
    assert kl_range(histogram(x), parse_format("int8"))[1] < 20


def test_constant_and_zero_data_have_ranges() -> None:
    for value in (0.0, 3.0, -3.0, 1e-42):
        h = histogram(torch.full((10,), value))
        for format, scheme in SETTINGS:
            _, (lo, hi), scores = best_range(h, parse_format(format), scheme)
            assert math.isfinite(lo) and math.isfinite(hi) and all(map(math.isfinite, scores.values()))


def test_zeros_cost_nothing() -> None:
    x = torch.zeros(1000)
    x[0] = 1.0
    assert expected_error(histogram(x), 0.0, 1.0, parse_format("uint8"), "one_sided") < 2**-22 / 1000


def test_allowed_limits_the_choice_but_never_excludes_minmax() -> None:
    h, format = histogram(torch.randn(1000)), parse_format("int8")
    assert set(best_range(h, format, "symmetric", allowed=["kl"])[2]) == {"minmax", "kl"}
    with pytest.raises(RecipeError, match="percentile_50"):
        best_range(h, format, "symmetric", allowed=["percentile_50"])


def test_kl_is_left_out_where_it_is_not_defined() -> None:
    h = histogram(torch.randn(1000))
    assert "kl" not in candidates(h, parse_format("uint8"), "asymmetric")
    assert "kl" not in candidates(h, parse_format("int16"), "symmetric")
    with pytest.raises(RecipeError, match="kl does not apply"):
        kl_range(h, parse_format("e4m3"))


@pytest.mark.parametrize("p", [0.0, 50.0, 100.1])
def test_impossible_percentiles_are_refused(p: float) -> None:
    with pytest.raises(RecipeError):
        percentile_range(histogram(torch.ones(1)), p)


def test_an_empty_histogram_has_no_range() -> None:
    for ask in (
        minmax_range,
        lambda h: percentile_range(h, 99.0),
        lambda h: mse_range(h, parse_format("int8"), "symmetric"),
        lambda h: kl_range(h, parse_format("int8")),
    ):
        with pytest.raises(CalibrationError, match="conv was never observed"):
            ask(Histogram(name="conv"))


@pytest.mark.parametrize("function", [gelu, silu, torch.sigmoid, torch.tanh])
def test_a_range_that_a_function_reads_is_judged_by_what_it_makes_of_it(function: Of) -> None:
    x = 2 * torch.randn(50_000, generator=torch.Generator().manual_seed(0)) - 0.5
    f, h = parse_format("uint8"), histogram(x)

    def error(read_by: Callable[[FloatArray], FloatArray] | None) -> float:
        """Of the function's result."""
        _, (lo, hi), _ = best_range(h, f, "asymmetric", read_by=read_by)
        params = params_from_range(lo, hi, f, PerTensor(), scheme="asymmetric")
        return float((function(fake_quantize(x, params)) - function(x)).square().mean())

    assert error(lambda y: function(torch.from_numpy(y)).numpy()) < error(None)
