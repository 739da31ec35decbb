"""The ops where they are meant to run, against the same ops on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.ops import append_kv, decode_attention, fp8_linear, int8_linear, quantize_rows
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.install import install
from qcompiler.ir.storage import recall, store
from qcompiler.numerics.philox import noise_key
from tests.backends.groups import hard
from tests.backends.triton.cases.attention import cache, exact, stored
from tests.backends.triton.cases.base import same
from tests.backends.triton.cases.products import operands
from tests.backends.triton.cases.rows import hard_rows

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]


def on_gpu(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.cuda() for x in tensors]


def needs_fp8() -> None:
    if capability(torch.device("cuda", 0)) != 90:
        pytest.skip("FP8 products have configurations for 9.0 only")


@pytest.mark.parametrize("columns", [256, 100, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("format", ["int8", "e4m3"])
def test_codes_and_scales_are_those_of_the_cpu(format: str, dtype: torch.dtype, columns: int) -> None:
    if format == "e4m3":
        needs_fp8()
    x = hard_rows(columns, dtype)
    for found, wanted in zip(quantize_rows(x.cuda(), format), quantize_rows(x, format), strict=True):
        assert same(found.cpu(), wanted)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144), (5, 24, 16)])
def test_integer_products_are_those_of_the_cpu(M: int, N: int, K: int, beside: bool) -> None:
    a, s, b, t = operands(M, N, K, torch.int8)
    bias, residual = (torch.randn(N), torch.randn(M, N).bfloat16()) if beside else (None, None)
    wanted = int8_linear(a, s, b, t, bias, residual, "none", torch.bfloat16)
    found = int8_linear(*on_gpu(a, s, b, t, bias, residual), "none", torch.bfloat16)
    assert torch.equal(found.cpu().nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("mode", ["fast", "promote128"])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144)])
def test_fp8_products_are_near_float64(M: int, N: int, K: int, mode: str) -> None:
    """ "fast" is held to 1e-2, since what tensor cores keep of a sum is not stated; its error is recorded."""
    needs_fp8()
    (a, s), (b, t) = quantize_rows(torch.randn(M, K), "e4m3"), quantize_rows(torch.randn(N, K), "e4m3")
    exact = (a.double() * s[:, None]) @ (b.double() * t[:, None]).t()
    found = fp8_linear(*on_gpu(a, s, b, t, None, None), "none", mode, torch.float16)
    error = ((found.cpu().double() - exact).norm() / exact.norm()).item()
    floor = ((exact.half().double() - exact).norm() / exact.norm()).item()
    assert error <= (1e-2 if mode == "fast" else 1.5 * floor), error


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [*((bits, torch.float32) for bits in (8, 4, 2, 1)), (4, torch.bfloat16), (2, torch.float16)],
)
def test_what_is_stored_in_few_bits_is_as_on_the_cpu(bits: int, dtype: torch.dtype) -> None:
    install(torch.device("cuda", torch.cuda.current_device()))
    x, key = hard(dtype), noise_key(-1, 2**32 - 1, 2**16 - 1)
    layout = (bits, [len(x)], [1], dtype)
    found, wanted = store(x.cuda(), key.cuda(), 5, bits), store(x, key, 5, bits)
    assert torch.equal(found[0].cpu(), wanted[0]) and same(found[1].cpu(), wanted[1])
    assert same(recall(*found, *layout).cpu(), recall(*wanted, *layout))


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_decoding_is_attention(kind: torch.dtype) -> None:
    """A token joins the cache as on the CPU; what is attended is held to the error that is derived for it."""
    if kind != torch.int8:
        needs_fp8()
    cached, q, at = cache(kind, 3, 2, 1500, 80), torch.randn(3, 8, 80).half(), torch.tensor([1400, 0, 70])
    k, v = torch.randn(2, 3, 2, 80).half()
    on_device = [x.cuda() for x in cached.all]
    append_kv(*cached.all, k, v, at)
    append_kv(*on_device, k.cuda(), v.cuda(), at.cuda())
    assert all(same(found.cpu(), wanted) for found, wanted in zip(on_device, cached.all, strict=True))
    found = decode_attention(q.cuda(), *on_device, (at + 1).cuda(), 80**-0.5).cpu().double()
    for b, length in enumerate((at + 1).tolist()):
        wanted, bound = exact(q[b], cached.of(b), length, 80**-0.5, tensor_cores=True)
        assert ((found[b] - wanted).abs() <= stored(wanted, bound)).all()
