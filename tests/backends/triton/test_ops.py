"""The ops on the CPU: their numbers, what they refuse, and that torch.compile takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.ops import fp8_linear, int8_linear, quantize_rows
from qcompiler.errors import InputError, TargetError

K = 48


def layer(format: str, M: int = 6, N: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, s = quantize_rows(torch.randn(M, K), format)
    b, t = quantize_rows(torch.randn(N, K), format)
    return a, s, b, t


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("format", "largest"), [("int8", 127), ("e4m3", 448), ("e5m2", 57344)])
def test_the_largest_of_a_row_has_the_largest_code(format: str, largest: int) -> None:
    x = torch.randn(7, 33)
    codes, scale = quantize_rows(x, format)
    assert codes.shape == (7, 48) and scale.shape == (7,)
    assert (codes.float()[:, 33:] == 0).all()
    assert (codes.float().abs().amax(1) == largest).all()
    steps = {"int8": 0.5 / 127, "e4m3": 2**-4, "e5m2": 2**-3}[format]  # of the largest of a row
    error = (codes.float()[:, :33] * scale[:, None] - x).abs().amax(1) / x.abs().amax(1)
    assert (error <= steps * (1 + 2**-20)).all()


def test_ties_go_to_the_even_code_and_rows_keep_to_themselves() -> None:
    x = torch.tensor(
        [[127, 0.5, 1.5, -2.5], [1, torch.nan, 2, 3], [0, 0, 0, 0], [1, torch.inf, 2, 3], [4, 2, 1, 0]]
    )
    codes, scale = quantize_rows(x, "int8")
    assert codes[0, :4].tolist() == [127, 0, 2, -2]
    assert scale[2] == 1 and scale.isnan().tolist() == [False, True, False, True, False]
    assert not codes[[1, 2, 3]].any()
    b, t = quantize_rows(torch.eye(4), "int8")
    y = int8_linear(codes, scale, b, t, None, None, "none", torch.float32)
    assert y.isnan().all(1).tolist() == y.isnan().any(1).tolist() == scale.isnan().tolist()


def test_the_smallest_numbers_do_not_overflow() -> None:
    tiny = 2.0**-149 * torch.tensor([[1.0, -64.0, 3.0], [2.0**22, -(2.0**20), 0.0]])
    codes, scale = quantize_rows(tiny, "int8")
    assert (scale == 2.0**-126).all() and not codes[0].any()
    assert codes[1, :3].tolist() == [0, 0, 0]  # half of 2^-126 is a tie


def test_integers_are_summed_exactly() -> None:
    """127^2 times the deepest K is an odd number beyond what float32 holds; it is rounded once."""
    deep = 133_136
    a = torch.full((1, deep), 127, dtype=torch.int8)
    a[0, 0] = 126
    one = torch.ones(1)
    y = int8_linear(a, one, a, one, None, None, "none", torch.float64)
    assert y.item() == torch.tensor(127**2 * (deep - 1) + 126**2).float().item()


def test_promotion_adds_128_at_a_time() -> None:
    """2^24 + 1 + 1 + 1 is 2^24 in float32, added one by one; 2^24 + 3 is 2^24 + 4."""
    a = torch.full((1, 384), 256.0)
    a[0, 256:] = 0
    a[0, [256, 300, 383]] = 1
    codes, one = a.to(torch.float8_e4m3fn), torch.ones(1)
    y = fp8_linear(codes, one, codes, one, None, None, "none", "promote128", torch.float32)
    assert y.item() == 2**24 + 4


def test_the_epilogue_is_in_the_order_stated() -> None:
    a, s, b, t = layer("int8")
    bias, residual = torch.randn(5), torch.randn(6, 5)
    sums = (a.long() @ b.long().t()).float()
    y = torch.nn.functional.silu(sums * s[:, None] * t + bias) + residual
    found = int8_linear(a, s, b, t, bias, residual, "silu", torch.float16)
    assert torch.equal(found, y.half())


# ---------------------------------------------------------------- torch


def arguments(op: str) -> tuple[Any, ...]:
    if op == "quantize":
        return (torch.randn(4, 33), "e4m3")
    bias, residual = torch.randn(5), torch.randn(6, 5)
    if op == "int8":
        return (*layer("int8"), bias, residual, "gelu", torch.bfloat16)
    return (*layer("e4m3"), bias, None, "none", "promote128", torch.float32)


OPS = {"quantize": quantize_rows, "int8": int8_linear, "fp8": fp8_linear}


@pytest.mark.parametrize("op", OPS)
def test_an_op_says_the_truth_about_itself(op: str) -> None:
    checks = ("test_faketensor",) if op == "fp8" else ("test_schema", "test_faketensor")
    torch.library.opcheck(
        OPS[op], arguments(op), test_utils=checks
    )  # of a schema, torch checks none with FP8


def test_ops_compile_as_one_graph_of_any_batch() -> None:
    w, t = quantize_rows(torch.randn(32, K), "int8")

    def linear(x: Tensor) -> Tensor:
        codes, scale = torch.ops.qcompiler.triton_quantize_rows(x, "int8")
        y: Tensor = torch.ops.qcompiler.triton_int8_linear(codes, scale, w, t, None, None, "gelu", x.dtype)
        return y

    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 8):
        x = torch.randn(batch, K)
        assert torch.equal(compiled(x), linear(x))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.zeros(6, 40, dtype=torch.int8), 2: torch.zeros(5, 40, dtype=torch.int8)}, "over 40"),
        ({0: torch.zeros(6, K)}, r"a product of torch.float32 \[6, 48\] and torch.int8 \[5, 48\]"),
        ({0: torch.zeros(K, 6, dtype=torch.int8).t()}, "rows must be contiguous"),
        ({1: torch.ones(5)}, r"scales torch.float32 \[5\]"),
        ({1: torch.ones(6, dtype=torch.float16)}, "scales in float32"),
        ({4: torch.ones(6)}, r"bias torch.float32 \[6\]"),
        ({5: torch.ones(5, 6)}, r"residual torch.float32 \[5, 6\]"),
        ({6: "relu6"}, 'activation "relu6"; use one of none, relu, gelu, silu'),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[int, Any], sentence: str) -> None:
    given = [*arguments("int8")]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=sentence):
        int8_linear(*given)


def test_other_refusals() -> None:
    deep = torch.zeros(1, 133_152, dtype=torch.int8)
    with pytest.raises(InputError, match="int32 holds the sum of 133144"):
        int8_linear(deep, torch.ones(1), deep, torch.ones(1), None, None, "none", torch.float32)
    with pytest.raises(InputError, match='accumulation "slow"'):
        fp8_linear(*layer("e4m3"), None, None, "none", "slow", torch.float32)
    with pytest.raises(InputError, match='rows in "int3"'):
        quantize_rows(torch.ones(2, 2), "int3")
    with pytest.raises(InputError, match="side by side"):
        quantize_rows(torch.ones(2, 3).t(), "int8")
    with pytest.raises(TargetError, match=r"configurations for 8\.0, 9\.0; use int8"):
        chosen("int8_matmul", 75)
    with pytest.raises(TargetError, match="there is no such kernel"):
        chosen("int3_matmul", 90)
