"""The ops where they are meant to run, against the same ops on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.ops import (
    append_kv,
    decode_attention,
    fp8_block_linear,
    fp8_linear,
    hadamard_quantize,
    int8_linear,
    linear_amax,
    linear_codes,
    low_bit_linear,
    norm_quantize,
    quantize_blocks,
    quantize_both,
    quantize_by_amax,
    quantize_by_scale,
    quantize_rows,
    quantize_tiles,
    weight_only_linear,
)
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.install import install
from qcompiler.backends.triton.tuning.bench import poisoned, spoil
from qcompiler.backends.triton.tuning.compiling import judged, pool
from qcompiler.backends.triton.tuning.families import space, written
from qcompiler.backends.triton.tuning.gate import lost, relative
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.products import contenders
from qcompiler.ir.storage import recall, store
from qcompiler.numerics.philox import noise_key
from tests.backends.groups import hard
from tests.backends.triton.cases.attention import cache, exact, stored
from tests.backends.triton.cases.base import same
from tests.backends.triton.cases.blocks import operands as block_operands
from tests.backends.triton.cases.both import hard_matrix
from tests.backends.triton.cases.products import operands
from tests.backends.triton.cases.rows import hard_rows
from tests.backends.triton.cases.weight_only import weight, whole_numbers

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]


def on_gpu(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.cuda() for x in tensors]


def needs_fp8() -> None:
    if capability(torch.device("cuda", 0)) != 90:
        pytest.skip("all kernels of FP8 have configurations for 9.0; other devices have some")


@pytest.mark.parametrize("columns", [256, 100, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("format", ["int8", "e4m3"])
def test_codes_and_scales_are_those_of_the_cpu(format: str, dtype: torch.dtype, columns: int) -> None:
    if format == "e4m3":
        needs_fp8()
    x = hard_rows(columns, dtype)
    for found, wanted in zip(quantize_rows(x.cuda(), format), quantize_rows(x, format), strict=True):
        assert same(found.cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("format", "scale"), [("int8", 1.0), ("int8", 0.03), ("e4m3", 0.01)])
def test_codes_by_one_scale_are_those_of_the_cpu(format: str, scale: float, dtype: torch.dtype) -> None:
    """NaN among them, of which the interpreter makes a number of FP8."""
    if format == "e4m3":
        needs_fp8()
    x, given = hard_rows(5000, dtype), torch.tensor([scale])
    found = quantize_by_scale(x.cuda(), given.cuda(), format)
    assert same(found.cpu(), quantize_by_scale(x, given, format))


@pytest.mark.parametrize(("M", "K"), [(256, 512), (300, 200), (77, 33)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("format", ["int8", "e4m3"])
def test_codes_of_both_orders_are_those_of_the_cpu(format: str, dtype: torch.dtype, M: int, K: int) -> None:
    if format == "e4m3":
        needs_fp8()
    x = hard_matrix(M, K, dtype)
    for key in (None, noise_key(5, 6)):
        on_device = quantize_both(x.cuda(), format, None if key is None else key.cuda(), 7)
        for found, wanted in zip(on_device, quantize_both(x, format, key, 7), strict=True):
            assert same(found.cpu(), wanted)


@pytest.mark.parametrize(("rows", "columns"), [(64, 4096), (12, 768), (3, 9000), (5, 33)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_are_those_of_the_cpu(norm: str, dtype: torch.dtype, rows: int, columns: int) -> None:
    x, residual = torch.randn(rows, columns).to(dtype), torch.randn(rows, columns).to(dtype)
    weight, bias = torch.randn(columns), torch.randn(columns)
    wanted = norm_quantize(x, residual, weight, bias, None, norm, 1e-5, "int8", True)
    found = norm_quantize(*on_gpu(x, residual, weight, bias, None), norm, 1e-5, "int8", True)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("columns", "block"), [(4096, 4096), (11008, 256), (96, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_hadamard_codes_are_those_of_the_cpu(dtype: torch.dtype, columns: int, block: int) -> None:
    x = torch.randn(20, columns).to(dtype)
    for found, wanted in zip(
        hadamard_quantize(x.cuda(), block, "int8"), hadamard_quantize(x, block, "int8"), strict=True
    ):
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144), (5, 24, 16)])
def test_integer_products_are_those_of_the_cpu(M: int, N: int, K: int, beside: bool) -> None:
    a, s, b, t = operands(M, N, K, torch.int8)
    bias, residual = (torch.randn(N), torch.randn(M, N).bfloat16()) if beside else (None, None)
    wanted = int8_linear(a, s, b, t, bias, residual, "none", torch.bfloat16)
    found = int8_linear(*on_gpu(a, s, b, t, bias, residual), "none", torch.bfloat16)
    assert torch.equal(found.cpu().nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144), (5, 24, 16)])
def test_what_products_hand_on_is_that_of_the_cpu(M: int, N: int, K: int, by_row: bool) -> None:
    """Codes, and maxima with the codes that they make in one pass."""
    a, s, b, t = operands(M, N, K, torch.int8)
    given = (a, s if by_row else None, b, t / 64, torch.randn(N), torch.randn(M, N).bfloat16())
    scale, on_device = torch.tensor([4.0]), on_gpu(*given)
    found = linear_codes(*on_device, "relu", scale.cuda())
    assert torch.equal(found.cpu(), linear_codes(*given, "relu", scale))
    y, amax = linear_amax(*on_device, "none", torch.bfloat16)
    wanted, largest = linear_amax(*given, "none", torch.bfloat16)
    assert same(y.cpu(), wanted) and torch.equal(amax.cpu(), largest)
    for one, other in zip(quantize_by_amax(y, amax, "int8"), quantize_rows(wanted, "int8"), strict=True):
        assert same(one.cpu(), other)
    assert torch.equal(
        quantize_by_scale(y, scale.cuda(), "int8").cpu(), quantize_by_scale(wanted, scale, "int8")
    )


@pytest.mark.parametrize("mode", ["fast", "promote128"])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144)])
def test_fp8_products_are_near_float64(M: int, N: int, K: int, mode: str) -> None:
    needs_fp8()
    (a, s), (b, t) = quantize_rows(torch.randn(M, K), "e4m3"), quantize_rows(torch.randn(N, K), "e4m3")
    exact = (a.double() * s[:, None]) @ (b.double() * t[:, None]).t()
    found = fp8_linear(*on_gpu(a, s, b, t, None, None), "none", mode, torch.float16)
    error, allowed = relative(found.cpu(), exact, lost(mode, K))
    assert error <= allowed


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("scheme", ["int8", "e4m3 fast", "e4m3 promote128"])
@pytest.mark.parametrize(("M", "way"), [(16, "SPLIT"), (4096, "PERSISTENT")])
def test_products_in_parts_and_walking_pass_the_gate(M: int, way: str, scheme: str, heavy: bool) -> None:
    """int8 to the bit where no exponential follows, and the same bits each time, whoever is first.

    All write to one result; neither there nor in sums of parts is anything right before.
    """
    if scheme != "int8":
        needs_fp8()
    device = torch.device("cuda", torch.cuda.current_device())
    op = "int8_linear" if scheme == "int8" else "fp8_linear"
    problem = Problem(op=op, scheme=scheme, M=M, N=2048, K=4096, heavy=heavy)
    every = {written(one): one for one in space(problem, capability(device)) if way in one.constants}
    with pool(1) as executor:
        verdicts = judged(problem, [*every.values()][:4], capability(device), executor, None)
        fit = {written(one.configuration): one.configuration for one in verdicts if not one.fault}
    assert fit
    made = contenders(problem, fit, (), device)

    def result(call: Callable[[int], Tensor]) -> Tensor:
        with poisoned():
            found = call(0)
        kept = found.clone()
        spoil(found)
        return kept

    for name, call in made.calls.items():
        first = result(call)
        assert made.wrong(name, first) == "" and torch.equal(result(call), first), name


@pytest.mark.parametrize("columns", [256, 100, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_of_blocks_are_those_of_the_cpu(dtype: torch.dtype, columns: int) -> None:
    """Of activations by a kernel, and of weights by torch on either device."""
    needs_fp8()
    x = hard_rows(columns, dtype)
    for make in (quantize_blocks, quantize_tiles):
        assert all(same(one.cpu(), other) for one, other in zip(make(x.cuda()), make(x), strict=True))


@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144), (5, 24, 16)])
def test_block_products_are_those_of_the_cpu(M: int, N: int, K: int) -> None:
    """Sums of 128 are at most 2^13, which are exact in tensor cores too."""
    needs_fp8()
    given = block_operands(M, N, K)
    beside = (torch.randn(N), torch.randn(M, N).bfloat16())
    wanted = fp8_block_linear(*given, *beside, "none", torch.bfloat16)
    found = fp8_block_linear(*on_gpu(*given, *beside), "none", torch.bfloat16)
    assert same(found.cpu(), wanted)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 384), (300, 200, 150)])
def test_integer_gradients_are_those_of_the_cpu(M: int, N: int, K: int, adds: bool) -> None:
    x, w, dy, into = (torch.randn(shape) for shape in ((M, K), (N, K), (M, N), (N, K)))

    def gradients(device: str) -> list[Tensor]:
        a, b, dc, total = (one.to(device, copy=True) for one in (x, w, dy, into))
        y = low_bit_linear(a.requires_grad_(), b.requires_grad_(), into=total if adds else None)
        torch.autograd.backward(y, dc)
        found = (a.grad, total if adds else b.grad)
        return [one.cpu() for one in found if one is not None]

    for found, wanted in zip(gradients("cuda"), gradients("cpu"), strict=True):
        assert torch.equal(found, wanted)


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


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layout", ["w4h_g128", "w4h_g32", "w2h_g64", "w8_g128"])
@pytest.mark.parametrize("M", [1, 9, 50, 200])
def test_products_with_weights_of_few_bits_are_those_of_the_cpu(M: int, layout: str, gated: bool) -> None:
    """Sums of groups are exact; K is split into parts."""
    x, (codes, scales, zeros) = whole_numbers(M, 2048, 8), weight(192 * (1 + gated), 2048, layout, True)
    bias, residual = torch.randn(len(codes)), torch.randn(M, 192).bfloat16()
    given = (codes, scales.bfloat16(), zeros, bias, residual)
    after = (layout, gated, "none", torch.float32)
    wanted = weight_only_linear(x.bfloat16(), *given, *after)
    assert same(weight_only_linear(*on_gpu(x.bfloat16(), *given), *after).cpu(), wanted)
