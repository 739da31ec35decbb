"""The gate of products, on sums of FP8 as tensor cores keep them, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.tuning.gate import FLOOR, lost, relative, too_far
from qcompiler.backends.triton.tuning.products import activations, weights

CPU = torch.device("cpu")


def operands(M: int, N: int, K: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, w = activations(M, K, torch.bfloat16, CPU), weights(N, K, torch.bfloat16, CPU)
    return quantize_rows(x, "e4m3")[0].double(), quantize_rows(w, "e4m3")[0].double()


def cut(x: Tensor, unit: Tensor) -> Tensor:
    return (x / unit).trunc() * unit


def summed(a: Tensor, b: Tensor, depth: int) -> Tensor:
    """32 products and the running sum, cut off behind 13 bits; a new sum every `depth`, added in float32."""
    total = torch.zeros(len(a), len(b), dtype=torch.float32)
    for part in range(0, a.shape[1], depth):
        s = torch.zeros(len(a), len(b), dtype=torch.float64)
        for k in range(part, min(part + depth, a.shape[1]), 32):
            p = a[:, None, k : k + 32] * b[None, :, k : k + 32]
            every = torch.cat((p, s[:, :, None]), 2)
            unit = 2.0 ** (every.abs().amax(2, keepdim=True).clamp(min=2.0**-60).log2().floor() - 13)
            s = cut(every, unit).sum(2)
            s = cut(s, 2.0 ** (s.abs().clamp(min=2.0**-60).log2().floor() - 13))
        total += s.float()
    return total


@pytest.mark.parametrize(
    ("mode", "K"), [("promote128", 128), ("promote128", 1024), ("fast", 256), ("fast", 2048)]
)
def test_sums_as_tensor_cores_keep_them_pass_and_are_far_from_what_rounding_alone_makes(
    mode: str, K: int
) -> None:
    """In float32, where a bound of 1.5 roundings would refuse what every device computes."""
    a, b = operands(12, 12, K)
    error, allowed = relative(summed(a, b, 128 if mode == "promote128" else K), a @ b.t(), lost(mode, K))
    assert 100 * FLOOR * 2.0**-24 < error < allowed


def test_sums_that_were_not_promoted_are_told_from_those_that_were() -> None:
    a, b = operands(6, 6, 8192)
    exact, fast = a @ b.t(), summed(a, b, 8192)
    assert too_far(fast, exact, lost("promote128", 8192)) and not too_far(fast, exact, lost("fast", 8192))


def test_sums_in_parts_are_as_near_as_whole_ones_may_be_and_nearer_than_they_are() -> None:
    a, b = operands(12, 12, 2048)
    exact, allowed = a @ b.t(), lost("fast", 2048)
    (whole, bound), (in_parts, _) = (relative(summed(a, b, depth), exact, allowed) for depth in (2048, 512))
    assert in_parts < whole < bound


def test_what_is_allowed_is_as_derived() -> None:
    """All of K, or 128 of them, in steps of 32; and little of an epilogue in float32."""
    promoted = pytest.approx(math.sqrt(88) * 2**-13, rel=1e-6)
    assert lost("promote128", 4096) == lost("promote128", 128) == promoted
    assert lost("fast", 4096) == pytest.approx(math.sqrt(2816) * 2**-13, rel=1e-6)
    assert lost("fast", 64) == lost("promote128", 64) < lost("fast", 128)
    assert lost("", 4096) < 1e-6


def test_one_wrong_number_of_a_tile_and_a_lost_nan_are_refused() -> None:
    exact = torch.randn(64, 64, dtype=torch.float64)
    found = exact.bfloat16()
    assert too_far(found, exact) == ""
    off = found.clone()
    off[3, 5] += 1
    assert "is allowed" in too_far(off, exact)
    exact[2] = torch.nan
    assert too_far(found, exact) != ""
    found[2] = torch.nan
    assert too_far(found, exact) == ""
