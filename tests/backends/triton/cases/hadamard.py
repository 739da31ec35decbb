"""Blocks of rows turned, to codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qcompiler.backends.triton.ops import hadamard_quantize
from qcompiler.backends.triton.ops.quantize import CODES, padded
from tests.backends.triton.cases.base import POISON, guarded, margin_is_untouched, poisoned, same
from tests.backends.triton.cases.rows import hard_rows


def hadamard(format: str, columns: int, levels: int, dtype: torch.dtype, block: int) -> None:
    from qcompiler.backends.triton.kernels.hadamard import launch

    x = hard_rows(columns, dtype)
    codes, whole = poisoned(len(x), padded(columns), CODES[format][0])
    scales = torch.full((len(x),), float(POISON))
    launch(guarded(x), codes, scales, levels, format, {"BLOCK": block}, {})
    for found, wanted in zip((codes, scales), hadamard_quantize(x, 2**levels, format), strict=True):
        assert same(found, wanted)
    assert {1, 2} <= {*scales.isnan().nonzero().flatten().tolist()} and scales[3] == 1
    assert margin_is_untouched(whole, len(x), padded(columns))


HADAMARD: Mapping[str, Callable[[], None]] = {
    "hadamard int8, aligned": lambda: hadamard("int8", 64, 6, torch.float16, 64),
    "hadamard int8, ragged": lambda: hadamard("int8", 40, 3, torch.float32, 64),
    "hadamard e4m3, ragged": lambda: hadamard("e4m3", 48, 4, torch.float32, 64),
    "hadamard e5m2, aligned": lambda: hadamard("e5m2", 64, 1, torch.float16, 64),
}
