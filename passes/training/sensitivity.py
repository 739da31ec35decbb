"""How much the gradient suffers when one value is stored in few bits.

    |g - g_exact|^2 / |g_exact|^2  ~  sum_t C_t v(b_t)        v(b) = 1 / (2^b - 1)^2

C_t is measured with t alone in the fewest bits that serve it, or with all that are alike so, which then share
it. The model adds variances, as independent draws without bias do; it holds from 2 bits on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompiler.numerics.philox import noise_key
from qcompiler.passes.training.alike import alike
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.run import apart_from_draws, backward, cotangents, distance, forward
from qcompiler.passes.training.saved import Saved
from qcompiler.progress import Tell, silent

ops = torch.ops.qcompiler
DRAWS = 2


def variance(bits: int) -> float:
    """v(b): of stochastic rounding in 2^b - 1 steps, against that in one."""
    return float(2**bits - 1) ** -2


def sensitivities(
    halves: Halves, values: Sequence[Saved], inputs: Sequence[Any], seed: int = 0, tell: Tell = silent
) -> dict[str, float]:
    """C of every value that has a choice of bits, by one batch and random gradients of its results.

    halves: nothing is stored in them yet. Each kind of value costs `DRAWS` backward passes.
    """
    key = noise_key(seed)
    with apart_from_draws(inputs):
        passed = forward(halves, inputs, key)
    tangents = cotangents(halves, seed)
    exact = backward(halves, passed.handed, tangents, key)
    places = {
        node.name: halves.results.index(node, halves.outputs) - halves.outputs for node in halves.crossing
    }
    kinds = alike(halves, [value for value in values if len(value.bits) > 1])
    found: dict[str, float] = {}
    for done, kind in enumerate(kinds):
        tell("measuring sensitivities", done, len(kinds))
        bits = min(kind[0].bits)
        errors = []
        for draw in range(DRAWS):
            handed = list(passed.handed)
            for place in (places[value.name] for value in kind):
                handed[place] = noisy(handed[place], noise_key(seed, draw), place, bits)
            errors.append(distance(backward(halves, handed, tangents, key), exact) ** 2)
        found |= {value.name: sum(errors) / DRAWS / variance(bits) / len(kind) for value in kind}
    tell("measuring sensitivities", len(kinds), len(kinds))
    return found


def noisy(x: Tensor, key: Tensor, ordinal: int, bits: int) -> Tensor:
    """A value as backward would recall it."""
    packed = ops.store(x, key, ordinal, bits)
    recalled: Tensor = ops.recall(*packed, bits, list(x.shape), list(x.stride()), x.dtype)
    return recalled
