"""Draws: the published answers of the generator, an independent one, and the laws of their addresses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from qcompiler.errors import InputError
from qcompiler.numerics import Purpose, noise_key, uniform
from qcompiler.numerics.philox import BLOCKS, philox, round_keys

Four = tuple[int, int, int, int]


def reference(counter: Four, key: tuple[int, int]) -> Four:
    """Philox-4x32-10 on integers without a width, as the paper writes it."""
    c, k = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = (q >> 32) ^ c[1] ^ k[0], q % 2**32, (p >> 32) ^ c[3] ^ k[1], p % 2**32
        k = (k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32
    return c


# counter, key, output: the vectors that come with the authors' code (Random123, kat_vectors)
ONES = 2**32 - 1
ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), ANSWERS)
def test_known_answers(counter: Four, key: tuple[int, int], output: Four) -> None:
    seed = noise_key(key[0] | key[1] << 32)[0]
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    words = philox((c0, c1, c2, c3), round_keys(seed))
    assert tuple(int(word) % 2**32 for word in words) == output == reference(counter, key)


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    rank=st.integers(0, 2**16 - 1),
    tensor=st.integers(0, 2**32 - 1),
    purpose=st.integers(0, 255),
    offset=st.integers(0, 2**34 - 9),
)
def test_draws_are_the_words_of_their_counter(
    seed: int, step: int, rank: int, tensor: int, purpose: int, offset: int
) -> None:
    key, stream = (seed % 2**32, seed >> 32), purpose | rank << 16
    words = [
        reference((element // 4, tensor, step, stream), key)[element % 4]
        for element in range(offset, offset + 9)
    ]
    draws = uniform(9, noise_key(seed, step, rank), tensor=tensor, purpose=purpose, offset=offset)
    assert (draws.double() * 2**24).tolist() == [word >> 8 for word in words]


# one element before, on and after each border of what is computed together, and of a block of four
BORDERS = [0, 1, 3, 4, 4 * BLOCKS - 1, 4 * BLOCKS, 4 * BLOCKS + 1, 8 * BLOCKS, 9 * BLOCKS]


@pytest.fixture(scope="module")
def whole() -> torch.Tensor:
    return uniform(9 * BLOCKS, noise_key(5, 7, 1), tensor=3, purpose=Purpose.GRAD_INPUT)


@pytest.mark.parametrize("start", BORDERS)
def test_a_part_has_the_draws_of_the_whole(whole: torch.Tensor, start: int) -> None:
    for stop in (border for border in BORDERS if border >= start):
        key = noise_key(5, 7, 1)
        part = uniform(stop - start, key, tensor=3, purpose=Purpose.GRAD_INPUT, offset=start)
        assert torch.equal(part, whole[start:stop])


def test_draws_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = uniform(100_000, noise_key(1), tensor=0, purpose=0)
        torch.set_num_threads(3)
        assert torch.equal(uniform(100_000, noise_key(1), tensor=0, purpose=0), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "other",
    [
        (noise_key(2, 2, 3), 4, 5),
        (noise_key(1 + 2**32, 2, 3), 4, 5),
        (noise_key(1, 3, 3), 4, 5),
        (noise_key(1, 2, 2), 4, 5),
        (noise_key(1, 2, 3), 5, 5),
        (noise_key(1, 2, 3), 4, 4),
    ],
)
def test_streams_are_independent(other: tuple[torch.Tensor, int, int]) -> None:
    n = 100_000
    first = uniform(n, noise_key(1, 2, 3), tensor=4, purpose=5).double() - 0.5
    second = uniform(n, other[0], tensor=other[1], purpose=other[2]).double() - 0.5
    # a product of two independent draws has standard deviation 1/12; four of those of the mean
    assert abs((first * second).mean().item()) < 4 / 12 / n**0.5


def test_draws_are_uniform_on_the_half_open_unit_interval() -> None:
    draws = uniform(100_000, noise_key(0), tensor=0, purpose=0)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0 and draws.max() < 1
    histogram = torch.histc(draws, 10, 0, 1)
    # chi-squared with 9 degrees of freedom: 27.9 is its 99.9th percentile
    assert ((histogram - 10_000) ** 2 / 10_000).sum() < 27.9


def test_the_key_is_computed_with_and_never_read() -> None:
    # a fake tensor has no values: reading one raises
    with FakeTensorMode():
        assert uniform(100_001, noise_key(1), tensor=0, purpose=0).shape == (100_001,)


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        (torch.zeros(3), {"tensor": 0, "purpose": 0}),
        (torch.zeros(2, dtype=torch.int64), {"tensor": 0, "purpose": 0}),
        (noise_key(0), {"tensor": -1, "purpose": 0}),
        (noise_key(0), {"tensor": 0, "purpose": 256}),
        (noise_key(0), {"tensor": 0, "purpose": 0, "offset": 2**34}),
    ],
)
def test_what_has_no_counter_is_refused(key: torch.Tensor, arguments: dict[str, int]) -> None:
    with pytest.raises(InputError):
        uniform(1, key, **arguments)
