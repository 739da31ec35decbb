"""What runs on a device computes the same whichever configuration was measured to be the fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.layouts import layout_named
from qcompiler.backends.triton.ops import hadamard, known, linear, norm, quantize, weight_only
from qcompiler.backends.triton.tuning.families import space
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.numerics import noise_key
from tests.backends.triton.cases.base import as_on_a_device, same
from tests.backends.triton.cases.both import hard_matrix
from tests.backends.triton.cases.products import operands
from tests.backends.triton.cases.rows import hard_rows
from tests.backends.triton.cases.weight_only import weight, whole_numbers

Call = Callable[[], Sequence[Tensor] | Tensor]


def differing(problem: Problem) -> list[Configuration]:
    """The candidates whose constants are all different: warps and stages are nothing to an interpreter."""
    found = {tuple(one.constants.items()): one for one in space(problem, 90)}
    return [*found.values()]


def all_candidates(problem: Problem, ops: ModuleType, on_cuda: Call, wanted: Call) -> None:
    rows = differing(problem)
    assert len(rows) > 1
    right = tensors(wanted())
    for row in rows:
        with as_on_a_device(ops, row):
            found = tensors(on_cuda())
        assert all(same(one, other) for one, other in zip(found, right, strict=True)), row.constants


def tensors(made: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    return [made] if isinstance(made, Tensor) else made


def rows() -> None:
    x = hard_rows(2300, torch.float32)
    problem = Problem(op="quantize_rows", scheme="int8", M=16, N=0, K=2300, out="fp32")
    all_candidates(
        problem, quantize, lambda: quantize.on_cuda(x, "int8"), lambda: quantize.quantize_rows(x, "int8")
    )


def by_one_scale() -> None:
    """Of parts of rows, which may be longer than a row is."""
    x, scale = hard_rows(1100, torch.float32), torch.tensor([0.03])
    problem = Problem(op="quantize_by_scale", scheme="int8", M=16, N=0, K=1100, out="fp32")
    all_candidates(
        problem, known, lambda: known.by_scale_on_cuda(x, scale, "int8"),
        lambda: known.quantize_by_scale(x, scale, "int8"),
    )  # fmt: skip


def drawn() -> None:
    from importlib import import_module

    ops = import_module("qcompiler.backends.triton.ops.quantize_both")
    x, key = hard_matrix(21, 33, torch.float32), noise_key(2**40 + 5, 7, 3)
    problem = Problem(op="quantize_both", scheme="int8 drawn ragged", M=32, N=0, K=33, out="fp32")
    all_candidates(
        problem, ops, lambda: ops.on_cuda(x, "int8", key, 9), lambda: ops.quantize_both(x, "int8", key, 9)
    )


def norms() -> None:
    """Of the table's block of 4096 and of the least that holds a row."""
    x, r, w = torch.randn(5, 700), torch.randn(5, 700), torch.randn(700)
    problem = Problem(op="norm_quantize", scheme="int8 rms residual", M=8, N=0, K=700, out="fp32")
    given = (x, r, w, None, None, "rms", 1e-5, "int8", False)
    all_candidates(problem, norm, lambda: norm.on_cuda(*given), lambda: norm.norm_quantize(*given))


def blocks() -> None:
    x = torch.randn(2, 300)
    problem = Problem(op="hadamard_quantize", scheme="int8 4", M=2, N=0, K=300, out="fp32")
    all_candidates(
        problem, hadamard, lambda: hadamard.on_cuda(x, 4, "int8"),
        lambda: hadamard.hadamard_quantize(x, 4, "int8"),
    )  # fmt: skip


def weights(M: int, K: int, parts: int) -> None:
    """No tile may change in how many parts K is; scaled sums of groups are rounded in their order."""
    x, (codes, scales, z) = whole_numbers(M, K, 4), weight(64, K, "w4h_g128", True)
    problem = Problem(op="weight_only_linear", scheme="w4h_g128 zeros", M=M, N=64, K=K, out="fp32")
    given = (x, codes, scales, z, None, None, "w4h_g128", False, "none", torch.float32)
    assert weight_only.parts_of(M, 64, K, layout_named("w4h_g128")) == parts
    all_candidates(
        problem, weight_only, lambda: weight_only.on_cuda(*given),
        lambda: weight_only.weight_only_linear(*given),
    )  # fmt: skip


def products() -> None:
    a, b = (torch.randint(-127, 128, (n, 64), dtype=torch.int8) for n in (5, 7))
    s, t = torch.rand(5), torch.rand(7)
    problem = Problem(op="int8_linear", scheme="int8", M=8, N=7, K=64, out="fp32")
    given = (a, s, b, t, None, None, "none", torch.float32)
    all_candidates(problem, linear, lambda: linear.int8_on_cuda(*given), lambda: linear.int8_linear(*given))


def fp8_products() -> None:
    """Of small integers, whose sums are exact."""
    a, s, b, t = operands(5, 7, 144, torch.float8_e4m3fn)
    problem = Problem(op="fp8_linear", scheme="e4m3 promote128", M=8, N=7, K=144, out="fp32")
    given = (a, s, b, t, None, None, "none", "promote128", torch.float32)
    all_candidates(problem, linear, lambda: linear.fp8_on_cuda(*given), lambda: linear.fp8_linear(*given))


SCHEDULES: Mapping[str, Callable[[], None]] = {
    "rows, however scheduled": rows,
    "rows by one scale, however scheduled": by_one_scale,
    "draws, however scheduled": drawn,
    "norms, however scheduled": norms,
    "Hadamard blocks, however scheduled": blocks,
    "weight only, one row, however scheduled": lambda: weights(1, 1024, 1),
    "weight only, some rows, however scheduled": lambda: weights(17, 2048, 2),
    "products, however scheduled": products,
    "fp8 products, however scheduled": fp8_products,
}
