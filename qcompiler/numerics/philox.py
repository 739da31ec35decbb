"""Random numbers as a pure function of (seed, step, rank, tensor, purpose, element)."""

from enum import IntEnum

import torch
from torch import Tensor

from qcompiler.errors import InputError

WORD = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio, and sqrt(3) - 1, in 32 bits
BLOCKS = 1 << 15  # that are computed together on a CPU: a dozen buffers of 256 KiB stay in its caches

Words = tuple[Tensor, Tensor, Tensor, Tensor]


class Purpose(IntEnum):
    """What draws are for: one tensor may need several that are independent."""

    SAVED_ACTIVATION = 0
    GRAD_INPUT = 1
    GRAD_WEIGHT = 2
    ROW_SAMPLING = 3
    WEIGHT_UPDATE = 4
    BIT_SPLITTING = 5


def noise_key(seed: int, step: int = 0, rank: int = 0) -> Tensor:
    """The key of `uniform`: (seed, step, rank), int64 [3]; of the seed 64 bits count, of the step 32."""
    signed = (seed + 2**63) % 2**64 - 2**63
    return torch.tensor([signed, step, rank], dtype=torch.int64)


def uniform(count: int, key: Tensor, *, tensor: int, purpose: int, offset: int = 0) -> Tensor:
    """`count` draws from [0, 1), float32, of the elements offset, offset + 1, ... of a tensor.

    u[i] = (word[e % 4] >> 8) * 2^-24        e = offset + i
    word = philox(counter = (e // 4, tensor, step, purpose | rank << 16), key = seed)

    `key` is int64 [3], (seed, step, rank), on the device where the draws are made. Its values are computed
    with and never read, so that they may change between runs of one captured graph. A draw depends on
    nothing else: recomputed, or made in parts, it has the same bits. Beyond the result it takes about
    3 MiB on a CPU, and 25 bytes per draw elsewhere.
    """
    check_draws(count, key, tensor, purpose, offset)
    seed, step, rank = key.unbind()
    keys = round_keys(seed)
    stream = (torch.full_like(step, tensor), step & WORD, (rank << 16) | purpose)
    first, last = offset // 4, -(-(offset + count) // 4)
    draws = torch.empty(last - first, 4, dtype=torch.float32, device=key.device)
    together = BLOCKS if key.device.type == "cpu" else max(last - first, 1)
    for start in range(first, last, together):
        stop = min(start + together, last)
        block = torch.arange(start, stop, dtype=torch.int64, device=key.device)
        fractions = torch.empty(stop - start, 4, dtype=torch.int32, device=key.device)
        tensors, steps, streams = (word.expand_as(block) for word in stream)
        words = philox((block, tensors, steps, streams), keys)
        for column, word in zip(fractions.unbind(1), words, strict=True):
            column.copy_(word)
        fractions.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
        torch.mul(fractions, 2.0**-24, out=draws[start - first : stop - first])
    return draws.flatten().narrow(0, offset - 4 * first, count)


def check_draws(count: int, key: Tensor, tensor: int, purpose: int, offset: int = 0) -> None:
    """Refuse what `uniform` cannot count."""
    if key.dtype != torch.int64 or key.shape != (3,):
        raise InputError(f"a noise key of {key.dtype} {tuple(key.shape)}", fix="use `noise_key`")
    if not (0 <= purpose < 2**8 and 0 <= tensor < 2**32 and 0 <= offset <= offset + count <= 2**34):
        raise InputError(
            f"no draws {offset} .. {offset + count} of purpose {purpose} for tensor {tensor}",
            why="a counter has 34 bits for the element, 32 for the tensor and 8 for the purpose",
        )


def round_keys(seed: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The keys of the ten rounds: in round r the two words of the 64-bit seed, plus r Weyl constants."""
    weyl = torch.tensor(WEYL, dtype=torch.int64, device=seed.device)
    rounds = torch.arange(ROUNDS, dtype=torch.int64, device=seed.device)
    k0, k1 = (torch.stack((seed, seed >> 32)) + rounds[:, None] * weyl).unbind(1)
    return list(zip(k0.unbind(), k1.unbind(), strict=True))


def philox(counter: Words, keys: list[tuple[Tensor, Tensor]]) -> Words:
    """Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    ten times:  (hi0, lo0) = M0 * c0        (hi1, lo1) = M1 * c2
                c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0

    Words are the low 32 bits of int64. c0 and c2 have no others; those of c1, c3 and of the keys are
    arbitrary. A product of two words wraps to the right 64 bits, of which the shift takes the upper ones.
    """
    # as tensors, which torch need not wrap at every use
    m0, m1, half, word = torch.tensor((*MULTIPLIERS, 32, WORD), device=counter[0].device).unbind()
    c0, c1, c2, c3 = counter
    for k0, k1 in keys:
        p0, p1 = torch.mul(c0, m0), torch.mul(c2, m1)
        c0 = torch.bitwise_right_shift(p1, half).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(word)
        c2 = torch.bitwise_right_shift(p0, half).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(word)
        c1, c3 = p1, p0
    return c0, c1, c2, c3
