"""Products with weights of few bits on the CPU: their numbers, the order of sums, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.layouts import LAYOUTS, Weight, layout_named, pack, restored
from qcompiler.backends.triton.ops import weight_only_linear
from qcompiler.backends.triton.ops.weight_only import PROGRAMS, mode_of, parts_of, product_for, totals
from qcompiler.errors import InputError

G128 = layout_named("w4h_g128")


def weight(rows: int, K: int, layout: str, zeros: bool = True) -> Weight:
    kind, shape = layout_named(layout), (rows, K // layout_named(layout).group)
    z = torch.randint(0, 1 << kind.bits, shape, dtype=torch.uint8)
    return Weight(
        codes=pack(torch.randint(0, 1 << kind.bits, (rows, K), dtype=torch.uint8), kind),
        scales=(torch.rand(shape) / 64 + 0.01).half(), zeros=z if zeros else None, layout=layout,
    )  # fmt: skip


def linear(
    x: Tensor,
    w: Weight,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: str = "none",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    y: Tensor = weight_only_linear(
        x, w.codes, w.scales, w.zeros, bias, residual, w.layout, gated, activation, dtype
    )
    return y


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_product_is_that_of_the_restored_weight(layout: str, zeros: bool) -> None:
    """Products are exact; K + 2 roundings at most follow (Higham, Accuracy and Stability, section 3.1)."""
    K = 256
    w = weight(64, K, layout, zeros)
    kept = restored(w).double()
    for M in (1, 3):
        x = torch.randn(M, K).half()
        exact = x.double() @ kept.t()
        bound = (K + 2) * 2**-24 * 1.01 * (x.double().abs() @ kept.abs().t())
        assert ((linear(x, w).double() - exact).abs() <= bound).all()


def test_a_scale_meets_the_sum_of_its_group_and_no_element() -> None:
    """The sum is exact, its product with s rounded once; s + .. + s, one by one, is another number."""
    codes = torch.full((64, 128), 9, dtype=torch.uint8)
    s = torch.full((64, 1), 1 / 3).half()
    w = Weight(codes=pack(codes, G128), scales=s, zeros=None, layout="w4h_g128")
    x = torch.ones(2, 128).half()
    x[:, :5] = 4096.0
    total = torch.tensor(123 + 5 * 4096.0)
    assert (linear(x, w) == total * s.float()[0]).all()
    one_by_one = torch.tensor(0.0)
    for value in x[0].float() * s.float()[0]:
        one_by_one += value
    assert one_by_one != total * s.float()[0, 0]


def test_a_gate_is_two_layers() -> None:
    w, x, bias = weight(128, 256, "w4h_g64"), torch.randn(3, 256).half(), torch.randn(128)
    residual = torch.randn(3, 64)
    g, u = linear(x, w, bias=bias).chunk(2, 1)
    found = linear(x, w, bias=bias, residual=residual, gated=True, activation="silu", dtype=torch.float16)
    assert torch.equal(found, (torch.nn.functional.silu(g) * u + residual).half())


def test_an_epilogue_is_in_the_order_stated() -> None:
    w, x = weight(64, 128, "w4h_g128"), torch.randn(3, 128).half()
    bias, residual = torch.randn(64), torch.randn(3, 64)
    found = linear(x, w, bias=bias, residual=residual, activation="gelu")
    assert torch.equal(found, torch.nn.functional.gelu(linear(x, w) + bias) + residual)


# ---------------------------------------------------------------- the order of sums


def sums_of(contributions: list[float], M: int, N: int = 64) -> Tensor:
    """Totals where group g contributes contributions[g], of which 2^24 + 1 and alike tell orders apart."""
    groups = len(contributions)
    x, steps = torch.zeros(M, groups * 128), torch.zeros(N, groups, 128)
    x[:, ::128], steps[:, :, 0] = torch.tensor(contributions), 1.0
    return totals(x, steps, torch.ones(N, groups), G128, False)


BIG = 2.0**24


def test_groups_of_more_rows_are_added_in_order() -> None:
    assert (sums_of([BIG, 1, 1, -BIG], 2) == 0).all()
    assert (sums_of([1, 1, BIG, -BIG], 2) == 2).all()


def test_groups_of_one_row_are_added_in_lanes_of_which_neighbours_are_added() -> None:
    assert (sums_of([BIG, 1, 1, -BIG], 1) == 1).all()  # 2^24 + (1 - 2^24); in order it is 0
    assert (sums_of([BIG, -BIG, 1, 1], 1) == 2).all()
    assert (sums_of([BIG, 1, 0, 0, 0, 0, 0, 0, -BIG, 0], 1) == 1).all()  # group 8 is of the first lane


def test_parts_are_added_last() -> None:
    assert parts_of(2, 64, 2048, G128) == 2
    groups = [0.0] * 16
    groups[0], groups[1], groups[8], groups[9] = BIG, -BIG, 1.0, 1.0
    assert (sums_of(groups, 2) == 2).all()
    groups[1], groups[9] = 1.0, -BIG
    assert (sums_of(groups, 2) == 1 - BIG + BIG).all()  # 2^24 + (1 - 2^24), where in order it is 0


@pytest.mark.parametrize(
    ("M", "N", "K", "parts"),
    [(1, 4096, 4096, 1), (1, 1024, 4096, 2), (1, 64, 128, 1), (16, 4096, 4096, 4), (16, 28672, 8192, 1),
     (64, 4096, 14336, 4), (128, 4096, 4096, 4), (8192, 4096, 4096, 1), (2, 64, 5120, 5), (2, 64, 1152, 1)],
)  # fmt: skip
def test_parts_keep_a_device_busy(M: int, N: int, K: int, parts: int) -> None:
    """None is empty: but for the last, each has as many steps."""
    assert parts_of(M, N, K, G128) == parts
    steps = -(-K // (1024 if M == 1 else 128))
    assert (parts - 1) * -(-steps // parts) < steps


def test_rows_choose_a_mode_and_a_configuration() -> None:
    assert [mode_of(M) for M in (1, 2, 16, 17, 64, 65, 8192)] == [
        "gemv", "few", "few", "some", "some", "many", "many",
    ]  # fmt: skip
    assert product_for(1, G128, 90, True).kernel == "weight_only_gemv"
    assert product_for(9, layout_named("w2h_g128"), 90, False).mode == "few, short groups"
    for M in (2, 64, 65):
        for heavy in (False, True):
            found = product_for(M, G128, 90, heavy)
            assert (found.mode, found.heavy) == (mode_of(M), heavy)
            assert PROGRAMS[found.mode][:2] == (found.constants["BM"], found.constants["BN"]) or heavy
    assert chosen("weight_only_gemv", 90).constants["BN"] == PROGRAMS["gemv"][1]


# ---------------------------------------------------------------- torch


def arguments() -> list[Any]:
    w = weight(128, 128, "w4h_g64")
    bias, residual = torch.randn(128), torch.randn(3, 64)
    return [torch.randn(3, 128).bfloat16(), w.codes, w.scales.bfloat16(), w.zeros, bias, residual,
            w.layout, True, "silu", torch.bfloat16]  # fmt: skip


def test_the_op_says_the_truth_about_itself() -> None:
    torch.library.opcheck(
        weight_only_linear, tuple(arguments()), test_utils=("test_schema", "test_faketensor")
    )


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.zeros(3, 128)}, r"torch.float32 \[3, 128\] and a weight \[128, 128\] in w4h_g64"),
        ({0: torch.zeros(3, 96).half()}, r"float16 \[M, 128\] is wanted"),
        ({0: torch.zeros(128, 32).half().t()[:3]}, "16 bytes are read at a time"),
        ({1: torch.zeros(128, 64, dtype=torch.int8)}, r"codes torch.int8 \[128, 64\]"),
        ({1: torch.zeros(96, 64, dtype=torch.uint8)}, r"a weight \[48, 128\] in w4h_g64"),
        ({2: torch.ones(128, 1).half()}, r"scales torch.float16 \[128, 1\] on cpu, because \[128, 2\]"),
        ({2: torch.ones(128, 2)}, "scales in bfloat16 or float16"),
        ({2: torch.ones(128, 4).half()[:, :2]}, "scales or zero points with gaps"),
        ({3: torch.ones(128, 2)}, "zero points in uint8"),
        ({4: torch.ones(64)}, r"bias torch.float32 \[64\]"),
        ({5: torch.ones(3, 128)}, r"residual torch.float32 \[3, 128\]"),
        ({6: "w4onnx_g64"}, 'layout "w4onnx_g64"; use one of'),
        ({8: "relu6"}, 'activation "relu6"; use one of none, relu, gelu, silu'),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[int, Any], sentence: str) -> None:
    given = arguments()
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=sentence):
        weight_only_linear(*given)
