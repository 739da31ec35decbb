"""Linear layers that are trained in 8 bits, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.ops import (
    accumulate,
    low_bit_linear,
    quantize_both,
    quantize_rows,
    trained_linear,
)
from qcompiler.backends.triton.ops.accumulate import DEEP, product
from qcompiler.backends.triton.ops.linear import fp8_linear, int8_linear
from qcompiler.errors import InputError
from qcompiler.numerics import noise_key

FORMATS = ("int8", "e4m3")


def layer(M: int = 21, N: int = 24, K: int = 150) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, w, bias and dy; an outlier in each, and a column of x of zeros."""
    x, w, bias, dy = torch.randn(M, K), torch.randn(N, K) / K**0.5, torch.randn(N), torch.randn(M, N)
    x[2, 3], w[5, 1], dy[1, 7], x[:, 4] = 30.0, 3.0, 20.0, 0.0
    return x.requires_grad_(), w.requires_grad_(), bias.requires_grad_(), dy


def rounding(x: Tensor, format: str) -> Tensor:
    """A bound on the norm of each row's error: half a step, of integers or of numbers of 4 binary digits."""
    x = x.double()
    amax = x.abs().amax(-1, keepdim=True)
    step = amax / 127 / 2 if format == "int8" else torch.maximum(x.abs() * 2**-4, amax / 448 * 2**-10)
    error: Tensor = step.expand_as(x).norm(dim=-1) * (1 + 2**-14)  # scale and quotient are float32
    return error


def distance_allowed(a: Tensor, b: Tensor, format: str) -> Tensor:
    """Of A B^T: |da| |b| + |a| |db| + |da| |db|, and float32 sums."""
    size = a.double().norm(dim=1)[:, None], b.double().norm(dim=1)
    error = rounding(a, format)[:, None], rounding(b, format)
    sums = (a.shape[1] + 4) * 2**-24 * (size[0] + error[0]) * (size[1] + error[1])
    allowed: Tensor = error[0] * size[1] + size[0] * error[1] + error[0] * error[1] + sums
    return allowed


@pytest.mark.parametrize("format", FORMATS)
def test_results_and_gradients_are_as_near_as_the_format_is_fine(format: str) -> None:
    x, w, bias, dy = layer()
    y = low_bit_linear(x, w, bias, format=format)
    found = [y, *torch.autograd.grad(y, (x, w, bias), dy)]
    exact = F.linear(x.double(), w.double(), bias.double())
    wanted = [exact, *torch.autograd.grad(exact, (x, w, bias), dy.double())]
    allowed = [
        distance_allowed(x.detach(), w.detach(), format) + 2**-23 * exact.abs(),
        distance_allowed(dy, w.detach().t(), format),
        distance_allowed(dy.t(), x.detach().t(), format),
        len(dy) * 2**-24 * dy.abs().sum(0),
    ]
    for one, other, bound in zip(found, wanted, allowed, strict=True):
        assert ((one - other).abs() <= bound).all()


@pytest.mark.parametrize("format", FORMATS)
def test_each_product_is_of_codes_of_what_it_sums_over(format: str) -> None:
    x, w, bias, dy = layer()
    y = low_bit_linear(x, w, bias, format=format, forward="promote128", backward="fast")
    found = (y, *torch.autograd.grad(y, (x, w), dy))

    def expected(left: Tensor, right: Tensor, bias: Tensor | None, mode: str) -> Tensor:
        a, b = (quantize_rows(one.detach().contiguous(), format) for one in (left, right))
        end = (torch.float32,) if format == "int8" else (mode, torch.float32)
        found: Tensor = (int8_linear if format == "int8" else fp8_linear)(*a, *b, bias, None, "none", *end)
        return found

    assert torch.equal(found[0], expected(x, w, bias, "promote128"))
    assert torch.equal(found[1], expected(dy, w.t(), None, "fast"))
    assert torch.equal(found[2], expected(dy.t(), x.t(), None, "fast"))


def test_a_byte_of_an_element_waits_for_backward() -> None:
    x, w, bias, _ = layer(32, 48, 64)
    kept: list[Tensor] = []

    def keep(one: Tensor) -> Tensor:
        kept.append(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        low_bit_linear(x, w, bias)
    assert sum(one.nbytes for one in kept) == 32 * 64 + 48 * 64 + 2 * 4 * 64


@pytest.mark.parametrize("frozen", ["x", "w"])
def test_what_is_frozen_gets_nothing_and_changes_nothing(frozen: str) -> None:
    x, w, bias, dy = layer()
    wanted = dict(zip("xw", torch.autograd.grad(low_bit_linear(x, w, bias), (x, w), dy), strict=True))
    given = {"x": x, "w": w}
    given[frozen].requires_grad_(False)
    torch.autograd.backward(low_bit_linear(given["x"], given["w"], bias), dy)
    (other,) = set(given) - {frozen}
    gradient = given[other].grad
    assert given[frozen].grad is None and gradient is not None and torch.equal(gradient, wanted[other])


@pytest.mark.parametrize("frozen", [False, True])
def test_with_a_key_gradients_are_products_of_drawn_codes(frozen: bool) -> None:
    x, w, _, dy = layer()
    w.requires_grad_(not frozen)
    key = noise_key(1, 2)
    torch.autograd.backward(low_bit_linear(x, w, key=key, tensor=9), dy)
    q, s, r, t = quantize_both(dy, "int8", key, 9)
    _, _, v, u = quantize_both(w.detach(), "int8")
    assert x.grad is not None and torch.equal(x.grad, product((q, s), (v, u), "fast", x.dtype))
    _, _, v, u = quantize_both(x.detach(), "int8")
    assert frozen == (w.grad is None)
    assert w.grad is None or torch.equal(w.grad, product((r, t), (v, u), "fast", x.dtype))


def test_micro_batches_share_the_codes_of_a_weight_and_add_to_one_gradient() -> None:
    x, w, _, dy = layer()
    x = x.detach()
    weight = quantize_both(w.detach(), "int8")
    into = torch.zeros_like(w, requires_grad=False)
    parts = [(x[:10], dy[:10]), (x[10:], dy[10:])]
    for part, gradient in parts:
        torch.autograd.backward(low_bit_linear(part, w, weight=weight, into=into), gradient)
    assert w.grad is None
    for part, gradient in parts:
        torch.autograd.backward(low_bit_linear(part, w), gradient)
    assert w.grad is not None and torch.equal(into, w.grad)


def test_what_is_added_to_is_rounded_once() -> None:
    (a, s), (b, t) = quantize_rows(torch.randn(5, 32), "int8"), quantize_rows(torch.randn(7, 32), "int8")
    out = torch.randn(5, 7).bfloat16()
    before = out.float()
    accumulate(out, a, s, b, t, "promote128")
    assert torch.equal(out, (before + int8_linear(a, s, b, t, None, None, "none", torch.float32)).bfloat16())


def test_sums_too_long_for_int32_are_added_part_by_part() -> None:
    a = torch.full((1, 2 * DEEP + 16), 127, dtype=torch.int8)
    a[0, -1] = 3
    one, bias = torch.ones(1), torch.ones(1)
    whole, short = torch.tensor(127.0**2 * DEEP), torch.tensor(127.0**2 * 15 + 9)
    y = product((a, one), (a, one), "fast", torch.float64, bias=bias)
    assert y == short + (whole + (whole + bias))


# ---------------------------------------------------------------- torch


def arguments(format: str) -> tuple[Any, ...]:
    x, w, bias, _ = layer(5, 16, 33)
    both = (quantize_both(one.detach(), format) for one in (x, w))
    return (x, w, bias, *both, "fast", "promote128", None, noise_key(3), 5)


def test_the_ops_say_the_truth_about_themselves() -> None:
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(trained_linear, arguments("int8"), test_utils=checks)
    torch.library.opcheck(trained_linear, arguments("e4m3"), test_utils=checks[1:])
    (a, s), (b, t) = quantize_rows(torch.randn(5, 32), "int8"), quantize_rows(torch.randn(7, 32), "int8")
    torch.library.opcheck(accumulate, (torch.randn(5, 7), a, s, b, t, "fast"), test_utils=checks)


def test_forward_and_backward_compile_as_one_graph_of_any_batch() -> None:
    key = noise_key(4)

    def linear(x: Tensor, w: Tensor, bias: Tensor, into: Tensor) -> Tensor:
        return low_bit_linear(x[None], w, bias, into=into, key=key)[0]

    def run(function: Any, batch: int) -> list[Tensor]:
        torch.manual_seed(batch)
        (x, w, bias, dy), into = layer(batch, 16, 40), torch.ones(16, 40)
        y = function(x, w, bias, into)
        dx, dw, dbias = torch.autograd.grad(y, (x, w, bias), dy, allow_unused=True)
        assert dw is None
        return [y, dx, dbias, into]

    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (9, 20):
        for found, wanted in zip(run(compiled, batch), run(linear, batch), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("rows", "format", "sentence"),
    [
        (5, "e5m2", r"codes of x \[5, 33\] of torch.float8_e5m2"),
        (6, "int8", r"codes of x \[5, 33\] of torch.int8 with shapes \[\[6, 48\], \[6\], \[33, 16\]"),
    ],
)
def test_codes_of_something_else_are_refused(rows: int, format: str, sentence: str) -> None:
    given = [*arguments("int8")]
    given[3] = quantize_both(torch.ones(rows, 33), format)
    with pytest.raises(InputError, match=sentence):
        trained_linear(*given)
    given[3] = given[3][:2]
    with pytest.raises(InputError, match="codes and scales of its rows and of its columns are wanted"):
        trained_linear(*given)
