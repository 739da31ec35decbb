"""Steps of a decoder without torch: the same numbers, and results that stay what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.backends.memory import HeldMemory
from qcompiler.backends.tvm import TvmExecutable
from qcompiler.backends.tvm.direct import AT_ONCE, Direct
from qcompiler.backends.tvm.memory import KeptMemory
from qcompiler.errors import InputError
from tests.backends.tvm.sets import pytestmark
from tests.backends.tvm.test_decoder import CAPACITY, made

__all__ = ["pytestmark"]


@pytest.fixture(scope="module", params=[50, 64])
def executable(request: pytest.FixtureRequest) -> Any:
    """Rows of 50 numbers lie on a plane; those of 64 have no gaps, and memory of torch is lent for them."""
    found = made("llama", "tvm", request.param).compiled.executable
    assert isinstance(found, TvmExecutable)
    return found


def test_results_are_those_of_torch_and_stay(executable: Any) -> None:
    """More steps than results are allocated at once, with some held and some given up in between."""
    kept, held = executable.memory(), HeldMemory(executable)
    assert isinstance(kept, KeptMemory)
    found, wanted = [], []
    for turn, part in enumerate(torch.randint(0, 50, (2 * AT_ONCE, 1, 1))):
        logits = kept.feed(part)
        wanted.append(held.feed(part))
        found.append(logits if turn % 3 else logits[..., 3:])  # a view holds the memory as well
    assert isinstance(kept.steps[1], Direct)
    for turn, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(one, other if turn % 3 else other[..., 3:])


def test_two_memories_do_not_write_into_each_other(executable: Any) -> None:
    one, other = executable.memory(), executable.memory()
    token = torch.tensor([[7]])
    first = one.feed(token)
    assert torch.equal(other.feed(token), first)
    assert torch.equal(one.feed(token), HeldMemory(executable).feed(torch.tensor([[7, 7]])))


def test_where_torch_computes_the_step_is_torchs() -> None:
    """Positions that are learnt are looked up by torch."""
    memory = made("gpt2", "tvm").compiled.executable.memory()  # type: ignore[attr-defined]
    memory.feed(torch.tensor([[7]]))
    assert not isinstance(memory.steps[1], Direct)


@pytest.mark.parametrize("token", [-1, 1 << 20])
def test_what_is_no_token_is_refused(executable: Any, token: int) -> None:
    memory = executable.memory()
    with pytest.raises(InputError, match="is no token, because its table has entries"):
        memory.feed(torch.tensor([[token]]))
    assert memory.length == 0


@pytest.mark.parametrize("length", [-1, CAPACITY])
def test_a_length_without_room_is_refused(executable: Any, length: int) -> None:
    memory = executable.memory()
    memory.length = length
    with pytest.raises(InputError, match="do not fit"):
        memory.feed(torch.tensor([[7]]))
