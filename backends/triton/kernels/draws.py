"""Draws of `numerics.philox`, the same bits: Philox-4x32-10 in integers, which Triton has.

    word = philox(counter = (e // 4, tensor, step, purpose | rank << 16), key = seed)[e % 4]
    u = (word >> 8) 2^-24           of element e

(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.)
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

WORDS = tl.constexpr(4)  # of one counter, for as many elements
UNIT = tl.constexpr(2.0**-24)


@triton.jit
def uniform(key, tensor, purpose, block):
    """[A, B] of uint32, the counters  -->  [A, B, 4] float32 from [0, 1).

    key points to int64 (seed, step, rank), of whose step 32 bits count, as of tensor.
    """
    step, stream = tl.load(key + 1).to(tl.uint32), ((tl.load(key + 2) << 16) | purpose).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(key), block, tensor.to(tl.uint32), step, stream)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # the last axis alternates fastest: w0, w1, w2, w3
    return (tl.reshape(words, [block.shape[0], block.shape[1], 4]) >> 8).to(tl.int32).to(tl.float32) * UNIT


@triton.jit
def in_order(key, tensor, purpose, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] of the elements 4 first, 4 first + 1, ..., row by row; of first 32 bits count."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS // WORDS)
    block = first.to(tl.uint32) + (row[:, None] * (COLUMNS // WORDS) + column[None, :]).to(tl.uint32)
    return tl.reshape(uniform(key, tensor, purpose, block), (ROWS, COLUMNS))


@triton.jit(do_not_specialize=("tensor", "purpose", "start"))
def draws(key, values, tensor, purpose, start, BLOCK: tl.constexpr):
    """values [programs * BLOCK] of the elements from 4 start on."""
    program = tl.program_id(0).to(tl.int64)
    found = in_order(key, tensor, purpose, start + program * (BLOCK // WORDS), 1, BLOCK)
    tl.store(values + program * BLOCK + tl.arange(0, BLOCK)[None, :], found)


def launch(
    key: Tensor, values: Tensor, tensor: int, purpose: int, start: int, block: int, options: Mapping[str, int]
) -> None:
    """Fill values, a multiple of block of them, with the draws from 4 start on; key is contiguous."""
    draws[(len(values) // block,)](
        key, values, signed(tensor), int(purpose), start, BLOCK=block, enable_fp_fusion=False, **options
    )


def signed(word: int) -> int:
    """The int32 with the bits of a word of 32, so that all words are of one type."""
    return (word + 2**31) % 2**32 - 2**31
