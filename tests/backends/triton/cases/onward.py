"""Products whose results go on in codes: as codes, or as floats with the maxima of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qcompiler.backends.triton.ops import linear_amax, linear_codes, quantize_rows
from qcompiler.backends.triton.ops.known import FORMAT
from qcompiler.backends.triton.ops.quantize import padded
from tests.backends.triton.cases.base import POISON, but_for_nan, guarded, poisoned, same
from tests.backends.triton.cases.products import operands, product

WAYS = {torch.int8: {}, torch.float8_e4m3fn: {"BK": 128, "PROMOTE": None}}


def codes(
    M: int, N: int, K: int, kind: torch.dtype, descriptors: bool, *, by_row: bool = True, **way: int
) -> None:
    """Those of y, with zeros behind the last; some saturate. By one scale of all rows none is NaN."""
    a, s, b, t = operands(M, N, K, kind)
    scale, rows = torch.tensor([4.0 if kind == torch.int8 else 0.02]), s if by_row else None
    t = t if by_row else t * 0.02
    for bias, residual, activation in (
        (torch.randn(N), None, "relu"),
        (None, torch.randn(M, N).half(), "none"),
    ):
        given = (a, rows, b, t, bias, residual, activation)
        found = product(*given, kind, {**WAYS[kind], "DESCRIPTORS": descriptors, **way}, scale=scale)
        wanted = linear_codes(*given, scale)
        assert same(but_for_nan(found, wanted), wanted)
        assert (found.float()[:, N:] == 0).all() and wanted.float().nan_to_num().amax() == {
            torch.int8: 127, torch.float8_e4m3fn: 448,
        }[kind]  # fmt: skip


def maxima(M: int, N: int, K: int, kind: torch.dtype, dtype: torch.dtype, descriptors: bool) -> None:
    """And the codes that they make in one pass are those of a quantizer that seeks them."""
    from qcompiler.backends.triton.kernels.known import launch

    a, s, b, t = operands(M, N, K, kind)
    bias, residual, constants = torch.randn(N), torch.randn(M, N), {**WAYS[kind], "DESCRIPTORS": descriptors}
    whole = torch.full((M + 16,), POISON, dtype=torch.int32)
    whole[:M] = 0
    bits = whole[:M]
    found = product(a, s, b, t, bias, residual, "none", dtype, constants, amax=bits)
    amax = bits.view(torch.float32)
    wanted, largest = linear_amax(a, s, b, t, bias, residual, "none", dtype)
    assert same(found, wanted) and torch.equal(amax, largest) and (whole[M:] == POISON).all()
    assert amax.isinf().nonzero().flatten().tolist() == [2]

    format = FORMAT[kind]
    onward, _ = poisoned(M, padded(N), kind)
    scales = torch.full((M,), float(POISON))
    launch(guarded(found), guarded(amax), None, onward, scales, format, 64, {})
    plain, plain_scales = quantize_rows(wanted, format)
    assert same(onward, plain) and same(scales, plain_scales)


ONWARD: Mapping[str, Callable[[], None]] = {
    "int8 product to codes, ragged": lambda: codes(70, 75, 80, torch.int8, False),
    "int8 product to codes by one scale, aligned, by descriptors": lambda: codes(
        64, 128, 128, torch.int8, True, by_row=False
    ),
    "fp8 product to codes, ragged": lambda: codes(40, 75, 144, torch.float8_e4m3fn, False),
    "fp8 product in parts to codes, ragged": lambda: codes(40, 75, 272, torch.float8_e4m3fn, False, SPLIT=2),
    "int8 product with maxima, ragged": lambda: maxima(70, 75, 80, torch.int8, torch.float16, False),
    "fp8 product with maxima, aligned, by descriptors": lambda: maxima(
        64, 64, 128, torch.float8_e4m3fn, torch.float32, True
    ),
}
