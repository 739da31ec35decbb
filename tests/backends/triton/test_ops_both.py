"""Codes in both orders, on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.ops import int8_linear, quantize_both
from qcompiler.errors import InputError


@pytest.mark.parametrize(("format", "largest"), [("int8", 127), ("e4m3", 448), ("e5m2", 57344)])
def test_each_order_has_scales_of_its_own_rows(format: str, largest: int) -> None:
    x = torch.randn(7, 33) * torch.logspace(-4, 4, 33) * torch.logspace(4, -4, 7)[:, None]
    codes, scales, turned, turned_scales = quantize_both(x, format)
    assert codes.shape == (7, 48) and turned.shape == (33, 16)
    steps = {"int8": 0.5 / 127, "e4m3": 2**-4, "e5m2": 2**-3}[format]  # of the largest of a row
    for y, q, s in ((x, codes, scales), (x.t(), turned, turned_scales)):
        assert (q.float().abs().amax(1) == largest).all() and not q.float()[:, y.shape[1] :].any()
        error = (q.float()[:, : y.shape[1]] * s[:, None] - y).abs().amax(1)
        assert (error <= y.abs().amax(1) * steps * (1 + 2**-20)).all()


def test_nan_stays_in_its_row_and_its_column() -> None:
    x = torch.randn(20, 16)
    x[3, 5] = torch.nan
    codes, scales, turned, turned_scales = quantize_both(x, "int8")
    assert scales.isnan().nonzero().tolist() == [[3]] and not codes[3].any()
    assert turned_scales.isnan().nonzero().tolist() == [[5]] and not turned[5].any()


def test_it_says_the_truth_about_itself() -> None:
    torch.library.opcheck(quantize_both, (torch.randn(4, 33), "int8"), test_utils=("test_schema",))
    torch.library.opcheck(quantize_both, (torch.randn(4, 33), "e4m3"), test_utils=("test_faketensor",))


def test_a_gram_matrix_compiles_as_one_graph_of_any_batch() -> None:
    """x^T x from turned codes, of which a product sums over the batch."""

    def gram(x: Tensor) -> Tensor:
        _, _, turned, scales = torch.ops.qcompiler.triton_quantize_both(x, "int8")
        found: Tensor = int8_linear(turned, scales, turned, scales, None, None, "none", x.dtype)
        return found

    compiled = torch.compile(gram, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 18):
        x = torch.randn(batch, 8)
        found = compiled(x)
        assert torch.equal(found, gram(x))
        size = x.norm(dim=0)
        error = batch**0.5 * 0.5 / 127 * x.abs().amax(0) * (1 + 2**-15)  # at most, of a column as a vector
        bound = size[:, None] * error + error[:, None] * size + error[:, None] * error
        sums = (batch + 8) * 2**-24 * size[:, None] * size  # rounded once for each term, and in the end
        assert ((found - x.t() @ x).abs() <= bound + sums).all()


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"columns of torch.float32 \[0, 4\]"):
        quantize_both(torch.ones(0, 4), "int8")
    with pytest.raises(InputError, match='rows in "int3"'):
        quantize_both(torch.ones(2, 2), "int3")
    with pytest.raises(InputError, match="side by side"):
        quantize_both(torch.ones(2, 3).t(), "int8")
