"""Torch on one thread between our calls, however the calls of several threads overlap."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qcompiler.backends.tvm.narrow import one_thread

THREADS = 3


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def test_who_enters_later_and_leaves_last_keeps_nothing() -> None:
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        one, other = one_thread(), one_thread()
        first.submit(one.__enter__).result()
        second.submit(other.__enter__).result()
        assert [each.submit(torch.get_num_threads).result() for each in (first, second)] == [1, 1]
        first.submit(one.__exit__, None, None, None).result()
        assert second.submit(torch.get_num_threads).result() == 1
        second.submit(other.__exit__, None, None, None).result()
        assert [each.submit(torch.get_num_threads).result() for each in (first, second)] == [THREADS] * 2
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == THREADS
    assert torch.get_num_threads() == THREADS


def test_an_error_inside_leaves_the_setting_as_it_was() -> None:
    with pytest.raises(ValueError, match="inside"), one_thread():
        raise ValueError("inside")
    assert torch.get_num_threads() == THREADS
