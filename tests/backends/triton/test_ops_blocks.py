"""FP8 with a scale for each block of 128, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.ops import fp8_block_linear, quantize_blocks, quantize_rows, quantize_tiles
from qcompiler.backends.triton.ops.blocks import scaled_mm
from qcompiler.backends.triton.ops.linear import ACTIVATIONS
from qcompiler.errors import InputError, TargetError
from qcompiler.numerics import ROW_BLOCK, SQUARE_BLOCK, reduce_amax
from qcompiler.numerics.block_codes import decoded

CODE = torch.float8_e4m3fn


def given(M: int = 6, N: int = 150, K: int = 272) -> list[Any]:
    a, s = quantize_blocks(torch.randn(M, K))
    b, t = quantize_tiles(torch.randn(N, K))
    return [a, s, b, t, torch.randn(N), torch.randn(M, N), "silu", torch.float32]


# ---------------------------------------------------------------- codes


def test_the_largest_of_a_block_has_the_largest_code() -> None:
    x, w = torch.randn(5, 300), torch.randn(200, 300)
    (a, s), (b, t) = quantize_blocks(x), quantize_tiles(w)
    assert a.shape == (5, 304) and s.shape == (3, 5) and b.shape == (200, 304) and t.shape == (2, 3)
    assert s.is_contiguous() and not a.float()[:, 300:].any() and not b.float()[:, 300:].any()
    for codes, scale, wide, blocks in ((a, s.t(), x, ROW_BLOCK), (b, t, w, SQUARE_BLOCK)):
        assert (reduce_amax(codes.float(), blocks) == 448).all()
        error = reduce_amax(decoded(codes, scale, blocks)[:, :300] - wide, blocks)
        half_a_step = 2**-4 * (1 + 2**-20)  # of the largest of a block
        assert (error <= reduce_amax(wide, blocks) * half_a_step).all()


def test_codes_of_one_block_are_those_of_rows() -> None:
    x = torch.randn(7, 100)
    (codes, scale), (wanted, scales) = quantize_blocks(x), quantize_rows(x, "e4m3")
    assert torch.equal(codes.float(), wanted.float()) and torch.equal(scale, scales[None])


def test_an_outlier_coarsens_its_block_alone() -> None:
    x = torch.randn(1, 256)
    alone, its = quantize_blocks(x)
    x[0, 3] = 1e7
    codes, scale = quantize_blocks(x)
    assert scale[0] > 1e4 * its[0] and scale[1] == its[1]
    assert torch.equal(codes[:, 128:].float(), alone[:, 128:].float())
    assert (codes[0, :128].float() != 0).sum() == 1, "beside it everything is lost"


def test_what_is_not_finite_and_zeros_keep_to_their_blocks() -> None:
    x = torch.randn(4, 272)
    x[1, 130], x[2, 0], x[3, 256:] = torch.nan, torch.inf, 0.0
    codes, scale = quantize_blocks(x)
    assert scale.isnan().nonzero().tolist() == [[0, 2], [1, 1]] and scale[2, 3] == 1
    assert not codes[1, 128:256].float().any() and not codes[2, :128].float().any()
    assert codes[1, :128].float().any() and not codes.float().isnan().any()
    assert (quantize_blocks(torch.full((1, 16), 2.0**-140))[1] == 2.0**-126).all()
    b, t = quantize_tiles(torch.randn(8, 272))
    y = fp8_block_linear(codes, scale, b, t, None, None, "none", torch.float32)
    assert y.isnan().all(1).tolist() == y.isnan().any(1).tolist() == [False, True, True, False]


# ---------------------------------------------------------------- the product


def test_sums_are_near_the_exact_ones() -> None:
    """u = 2^-24: 127 u of a sum of 128, u of the scale and of each sum of blocks, of S = sum |a s| |b t|."""
    a, s, b, t, *_ = given()
    left, right = decoded(a, s.t(), ROW_BLOCK), decoded(b, t, SQUARE_BLOCK)
    found = fp8_block_linear(a, s, b, t, None, None, "none", torch.float32)
    bound = (127 + 1 + 3) * 2.0**-24 * (left.abs() @ right.abs().t())
    assert ((found.double() - left @ right.t()).abs() <= bound * (1 + 2**-10)).all()


def test_blocks_are_scaled_and_added_with_one_rounding() -> None:
    """-1 + 3 float32(1 / 3) is 2^-25; a product that is rounded by itself is 1."""
    a, b = torch.zeros(1, 256), torch.zeros(1, 256)
    a[0, 5], b[0, 5], a[0, 200], b[0, 200] = -1, 1, 3, 1
    s = torch.tensor([[1.0], [1 / 3]])
    y = fp8_block_linear(a.to(CODE), s, b.to(CODE), torch.ones(1, 2), None, None, "none", torch.float32)
    assert y.item() == 2.0**-25
    third = torch.tensor([[1.0], [7.0]]), torch.tensor([[1.0, 1 / 3]])
    y = fp8_block_linear(a.to(CODE), third[0], b.to(CODE), third[1], None, None, "none", torch.float32)
    scale = (third[0][1] * third[1][0, 1]).double()  # which is rounded
    assert y.item() == (3 * scale - 1).float().item()


def test_the_epilogue_is_in_the_order_stated() -> None:
    a, s, b, t, bias, residual, *_ = given()
    sums = fp8_block_linear(a, s, b, t, None, None, "none", torch.float32)
    found = fp8_block_linear(a, s, b, t, bias, residual, "silu", torch.bfloat16)
    assert torch.equal(found, (F.silu(sums + bias) + residual).bfloat16())


# ---------------------------------------------------------------- torch


@pytest.mark.parametrize("rows", [1, 6])
def test_ops_say_the_truth_about_themselves(rows: int) -> None:
    """Of a schema torch checks none with FP8."""
    checks = ("test_faketensor",)
    torch.library.opcheck(quantize_blocks, (torch.randn(rows, 100),), test_utils=checks)
    torch.library.opcheck(fp8_block_linear, tuple(given(M=rows)), test_utils=checks)


def test_scales_lie_as_a_vendor_wants_them() -> None:
    """Whoever checks calls for torch takes ours: a call on a GPU may still be refused by its libraries."""
    bias, residual = torch.randn(256), torch.randn(48, 256)
    for K in (512, 640):
        (a, s), (b, t) = quantize_blocks(torch.randn(48, K)), quantize_tiles(torch.randn(256, K))
        with FakeTensorMode() as mode:
            a, s, b, t, beside, added = (mode.from_tensor(x) for x in (a, s, b, t, bias, residual))
            y = scaled_mm(a, s, b, t, beside, added, "gelu", torch.float32)
            assert y.shape == (48, 256) and y.dtype == torch.float32
            with pytest.raises(RuntimeError, match="scale a must have shape"):
                scaled_mm(a, s.t().contiguous().t(), b, t, None, None, "none", torch.bfloat16)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_vendor_s_product_ends_as_ours_does(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an epilogue costs us, a vendor's has none."""
    y, residual = torch.randn(128, 128), torch.randn(128, 128)
    monkeypatch.setattr(F, "scaled_mm", lambda *given: y.bfloat16())
    (a, s), (b, t) = quantize_blocks(torch.randn(128, 128)), quantize_tiles(torch.randn(128, 128))
    wanted = ACTIVATIONS[activation](y.bfloat16().float())
    found = [scaled_mm(a, s, b, t, None, added, activation, torch.float32) for added in (None, residual)]
    assert torch.equal(found[0], wanted) and torch.equal(found[1], wanted + residual)


def test_no_rows_have_no_codes() -> None:
    codes, scales = quantize_blocks(torch.randn(0, 300))
    assert codes.shape == (0, 304) and codes.dtype == CODE and scales.shape == (3, 0)
    empty = torch.ops.qcompiler.quantize_rows(torch.empty(0, 300), "float8_e4m3fn", 128)
    assert [part.shape[0] for part in empty] == [0, 0, 0]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.zeros(6, 272)}, r"a product of torch.float32 \[6, 272\]"),
        ({0: torch.zeros(6, 40).to(CODE), 2: torch.zeros(150, 40).to(CODE)}, "over 40"),
        ({1: torch.ones(6, 3)}, r"scales torch.float32 \[6, 3\] .* \[3, 6\] on cpu is wanted"),
        ({1: torch.ones(3, 12)[:, ::2].contiguous().half()}, "scales in float32"),
        ({3: torch.ones(150)}, r"scales torch.float32 \[150\] .* \[2, 3\] on cpu is wanted"),
        ({4: torch.ones(6)}, r"bias torch.float32 \[6\]"),
        ({5: torch.ones(150, 6)}, r"residual torch.float32 \[150, 6\]"),
        ({6: "relu6"}, 'activation "relu6"'),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[int, Any], sentence: str) -> None:
    arguments = given()
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(InputError, match=sentence):
        fp8_block_linear(*arguments)


def test_other_refusals() -> None:
    with pytest.raises(InputError, match="side by side"):
        quantize_blocks(torch.ones(2, 3).t())
    with pytest.raises(InputError, match="floats"):
        quantize_tiles(torch.ones(2, 3, dtype=torch.int8))
    with pytest.raises(TargetError, match=r"fp8_block_matmul on a device of compute capability 8\.0"):
        chosen("fp8_block_matmul", 80)
    with pytest.raises(TargetError, match=r"quantize_blocks .* configurations for 8\.9"):
        chosen("quantize_blocks", 80)
