"""Distances and random gradients, of complex numbers too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.passes.training.run import cotangents, distance


def test_imaginary_parts_count() -> None:
    exact = torch.tensor([3 + 4j, 0])
    assert distance([exact.conj()], [exact]) == pytest.approx(8 / 5)
    assert distance([exact], [exact]) == 0


def test_gradients_of_complex_results_are_complex() -> None:
    graph = fx.Graph()
    for place, dtype in enumerate([torch.complex64, torch.bfloat16]):
        graph.placeholder(f"tangents_{place}").meta["val"] = torch.empty(1000, dtype=dtype)
    graph.output(())
    halves: Any = SimpleNamespace(backward=fx.GraphModule({}, graph))
    first, second = cotangents(halves)
    assert first.imag.std() > 0.6  # each part has half of the variance
    assert second.dtype == torch.bfloat16
