"""One block of memory for all constants."""

from __future__ import annotations

import itertools
import mmap
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompiler.backends.tvm.build import ALIGNMENT
from qcompiler.backends.tvm.pages import PAGE, arranged, reserved


def constants() -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(0)
    return {
        "bytes": draw.integers(0, 256, (3, 5), np.uint8),
        "one": np.array([2.5], np.float32),
        "empty": np.zeros((0, 4), np.int8),
        "many": draw.standard_normal((PAGE // 4 + 3,)).astype(np.float32),
        "turned": draw.integers(-9, 9, (4, 6), np.int32).T,
    }


def test_values_are_kept_on_lines_of_their_own() -> None:
    given = constants()
    found = arranged(given)
    assert list(found) == list(given)
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array.reshape(-1))
        assert found[name].ctypes.data % ALIGNMENT == 0
    used = sorted((x.ctypes.data, x.ctypes.data + x.nbytes) for x in found.values() if x.nbytes)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(used))


def test_nothing_to_arrange() -> None:
    assert arranged({}) == {}


def test_a_block_begins_on_a_page() -> None:
    block = reserved(3 * PAGE + 1)
    assert block.ctypes.data % PAGE == 0 and block.size == 3 * PAGE + 1 and not block.any()


class WithoutLargePages(mmap.mmap):
    def madvise(self, *_: int) -> None:
        raise OSError(22, "Invalid argument")


def test_a_system_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", WithoutLargePages)
    given = constants()
    assert all(np.array_equal(found, given[name].reshape(-1)) for name, found in arranged(given).items())
