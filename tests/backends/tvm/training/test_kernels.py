"""Kernels of a training step: equal to the reference to the last bit, and only there where they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor

from qcompiler.backends.tvm.isa import AVX2, Isa
from qcompiler.backends.tvm.training import calls, install
from qcompiler.backends.tvm.training import install as installation
from qcompiler.errors import EngineError, InputError
from qcompiler.ir.draws import draws
from qcompiler.ir.storage import recall, store
from qcompiler.numerics.groupwise import GROUP, compress, decompress
from qcompiler.numerics.philox import noise_key, uniform
from tests.backends.groups import hard
from tests.backends.tvm.sets import BEST, RUNNABLE
from tests.passes.training.steps import Block, stepped

pytestmark = pytest.mark.skipif(AVX2 not in RUNNABLE, reason="there are no kernels for this CPU")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = [*((bits, TYPES[0]) for bits in (8, 4, 2, 1)), *((4, dtype) for dtype in TYPES[1:])]
KEYS = (
    noise_key(0),
    noise_key(-1, 2**32 - 1, 2**16 - 1),
    torch.tensor([0, 0x0123_4567_89AB_CDEF, 7, 3])[1:],  # not on a cache line
)


@pytest.fixture(autouse=True)
def _ready() -> None:
    install()


@pytest.fixture(params=list(dict.fromkeys((BEST, AVX2))), ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isa:
    monkeypatch.setattr(calls, "isa", lambda: request.param)
    found: Isa = request.param
    return found


@contextmanager
def reference() -> Iterator[None]:
    """The operators without kernels."""
    with ExitStack() as stack:
        for operator in (draws, store, recall):
            stack.enter_context(operator.set_kernel_enabled("cpu", False))
        yield


def stored(x: Tensor, bits: int, key: Tensor, tensor: int = 5) -> tuple[Tensor, Tensor]:
    """By the reference."""
    return compress(x, bits, lambda offset, n: uniform(n, key, tensor=tensor, purpose=0, offset=offset))


def same(found: Tensor, wanted: Tensor) -> bool:
    """Bit by bit; a NaN is a NaN."""
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    nan = wanted.isnan()
    kind = {2: torch.int16, 4: torch.int32}[wanted.element_size()]
    bits = (x.masked_fill(nan, 0).view(kind) for x in (found, wanted))
    return found.dtype == wanted.dtype and torch.equal(found.isnan(), nan) and torch.equal(*bits)


@pytest.mark.parametrize(("bits", "dtype"), FORMS, ids=str)
def test_codes_bounds_and_values_are_those_of_the_reference(isa: Isa, bits: int, dtype: torch.dtype) -> None:
    x = hard(dtype)
    for key in KEYS:
        wanted = stored(x, bits, key)
        assert all(map(same, calls.stored(x, key, 5, bits), wanted))
        found = calls.recalled(*wanted, bits, [len(x)], [1], dtype)
        assert same(found, decompress(*wanted, bits, len(x), dtype=dtype))


@pytest.mark.parametrize("count", [0, 1, 63, 255, 256, 257, 1000])
def test_any_number_of_elements(isa: Isa, count: int) -> None:
    x, key = torch.randn(count, generator=torch.Generator().manual_seed(1)), KEYS[2]
    wanted = stored(x, 4, key)
    assert all(map(same, calls.stored(x, key, 5, 4), wanted))
    assert same(calls.recalled(*wanted, 4, [count], [1], x.dtype), decompress(*wanted, 4, count))
    for offset in (0, 1, 255, 256, 1023, 2**34 - count):
        drawn = uniform(count, key, tensor=2**32 - 1, purpose=255, offset=offset)
        assert torch.equal(calls.drawn(key, count, 2**32 - 1, 255, offset), drawn)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x[:, 1:, ::2],
        lambda x: x.flatten()[3:-2].view(7, -1),
        lambda x: x.flatten()[::2],
        lambda x: x.half()[:, 1:, ::2],
    ],
    ids=["transposed", "every other", "not on a cache line", "every other of a row", "float16"],
)
def test_any_layout(view: Callable[[Tensor], Tensor]) -> None:
    x, key = view(torch.randn(4, 24, 71, generator=torch.Generator().manual_seed(2))), KEYS[2]
    made, layout = store(x, key, 5, 4), (4, list(x.shape), list(x.stride()), x.dtype)
    with reference():
        wanted = store(x, key, 5, 4)
        back = recall(*wanted, *layout)
    assert all(map(same, made, wanted))
    found = recall(*made, *layout)
    assert same(found, back)
    assert found.stride() == back.stride() == x.stride()


def test_threads_divide_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WORTH_SHARING", GROUP)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x, key = torch.randn(10 * GROUP + 9, generator=torch.Generator().manual_seed(3)), KEYS[1]
    wanted = stored(x, 2, key)
    assert all(map(same, calls.stored(x, key, 5, 2), wanted))
    assert same(calls.recalled(*wanted, 2, [len(x)], [1], x.dtype), decompress(*wanted, 2, len(x)))
    assert calls.team(3).threads


@pytest.mark.parametrize(
    "call",
    [
        lambda: store(torch.zeros(9, dtype=torch.float64), KEYS[0], 0, 4),
        lambda: store(torch.zeros(9), KEYS[0], 0, 3),
        lambda: store(torch.zeros(9), KEYS[0][:2], 0, 4),
        lambda: store(torch.zeros(9), KEYS[0], 2**32, 4),
        lambda: recall(*store(torch.zeros(9), KEYS[0], 0, 4), 4, [999], [1], torch.float32),
        lambda: recall(*store(torch.zeros(9), KEYS[0], 0, 4), 3, [9], [1], torch.float32),
        lambda: draws(KEYS[0], 9, 0, 0, 2**34),
    ],
)
def test_what_the_reference_refuses_is_refused_in_the_same_words(call: Callable[[], object]) -> None:
    with pytest.raises(InputError) as found:
        call()
    with reference(), pytest.raises(InputError) as wanted:
        call()
    assert str(found.value) == str(wanted.value)


def test_a_step_is_the_same_with_kernels_and_without_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored activations, and gradients that are rounded stochastically."""
    torch.manual_seed(0)
    model, x = Block(width=32), torch.randn(2, 16, 32)
    result, gradient, piece = stepped(model, x, memory="act4", recipe="int8-stochastic")
    assert piece.slow == ""
    monkeypatch.setitem(sys.modules, "qcompiler.backends.tvm.training", None)
    with reference():
        expected, wanted, piece = stepped(model, x, memory="act4", recipe="int8-stochastic")
    assert piece.slow.startswith("TVM cannot be imported: ")
    assert torch.equal(result, expected)
    assert torch.equal(gradient, wanted)


def test_wrong_numbers_are_found_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[installation.__module__]
    monkeypatch.setattr(module, "recalled", lambda *given: calls.recalled(*given) + 1e-3)
    with reference(), pytest.raises(EngineError, match="the values are not those of the reference"):
        module.prove()
