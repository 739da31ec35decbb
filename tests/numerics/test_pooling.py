"""Indices of max-pooling come back from the taps of their windows."""

import random

import pytest
import torch
import torch.nn.functional as F

from qcompiler.numerics.pooling import Pooling, pack_taps, unpack_taps

POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def drawn(chosen: random.Random) -> tuple[torch.Tensor, Pooling]:
    """Indices that torch finds in random maps, with many values that are equal, and their windows."""
    axes = chosen.randint(1, 3)
    window = [chosen.randint(1, 5) for _ in range(axes)]
    dilation = [chosen.randint(1, 3) for _ in range(axes)]
    padding = [chosen.randint(0, length // 2) for length in window]
    stride = [chosen.randint(1, 4) for _ in range(axes)]
    shapes = zip(window, dilation, padding, strict=True)
    size = [max(1, (k - 1) * d + 1 - 2 * p) + chosen.randint(0, 8) for k, d, p in shapes]
    x = torch.randint(0, 3, (2, 3, *size)).float()
    if axes == 2 and chosen.random() < 0.5:
        x = x.to(memory_format=torch.channels_last)
    _, index = POOLS[axes - 1](
        x, window, stride, padding, dilation, ceil_mode=chosen.random() < 0.5, return_indices=True
    )
    return index, Pooling(
        size=tuple(size), positions=tuple(index.shape[2:]), window=tuple(window), stride=tuple(stride),
        padding=tuple(padding), dilation=tuple(dilation),
    )  # fmt: skip


def test_indices_come_back_as_they_were() -> None:
    chosen, met = random.Random(0), set()
    for _ in range(200):
        index, pooling = drawn(chosen)
        met.add(pooling.bits)
        if pooling.bits is not None:
            packed = pack_taps(index, pooling)
            assert packed.numel() == -(-index.numel() * pooling.bits // 8)
            assert torch.equal(unpack_taps(packed, pooling, index.shape), index), pooling
    assert met == {1, 2, 4, 8, None}


def test_maps_are_packed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    _, index = F.max_pool2d(torch.randn(3, 5, 9, 9), 3, 2, 1, return_indices=True)
    pooling = Pooling(
        size=(9, 9), positions=(5, 5), window=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1)
    )
    whole = pack_taps(index, pooling)
    monkeypatch.setattr("qcompiler.numerics.pooling.TOGETHER", 60)
    assert torch.equal(pack_taps(index, pooling), whole)
    assert torch.equal(unpack_taps(whole, pooling, index.shape), index)


@pytest.mark.parametrize(
    ("window", "bits"), [((1, 2), 1), ((2, 2), 2), ((3, 3), 4), ((7, 7), 8), ((17, 17), None)]
)
def test_bits_are_those_of_the_window(window: tuple[int, int], bits: int | None) -> None:
    pooling = Pooling(
        size=(32, 32), positions=(16, 16), window=window, stride=(1, 1), padding=(0, 0), dilation=(1, 1)
    )
    assert pooling.bits == bits


def test_windows_that_see_nothing_have_no_taps() -> None:
    """Taps at -1 and 2 of a map of two: torch's own index is of neither."""
    pooling = Pooling(size=(2,), positions=(1,), window=(2,), stride=(1,), padding=(1,), dilation=(3,))
    assert pooling.bits is None
