"""The mean of any number of processes that crosses in 8 bits, here in one: what is lost is sent later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.training.feedback import ToEach, mean_of_all, shard_size
from qcompiler.training.messages import CODES, Messages

BLOCK = 16
every_format = pytest.mark.parametrize("format", CODES)


def together(gradients: list[Tensor], messages: Messages) -> tuple[list[Tensor], list[Tensor]]:
    """What each of the processes has in the end: its mean, and its error."""
    world, count = len(gradients), gradients[0].numel()
    shard = shard_size(count, world, messages.block)
    shards = [torch.nn.functional.pad(x, (0, world * shard - count)).view(world, shard) for x in gradients]
    steps = [mean_of_all(x, rank, messages) for rank, x in enumerate(shards)]
    first = [next(step) for step in steps]
    second = []
    for rank, step in enumerate(steps):
        came = []
        for other, given in enumerate(first):
            if other != rank:
                assert isinstance(given, ToEach) and len(given.messages) == world - 1
                came.append(given.messages[rank - (rank > other)])  # an order of ranks without the sender's
        second.append(step.send(torch.stack(came)))
    everywhere = torch.stack([given.message for given in second if not isinstance(given, ToEach)])
    means = []
    for step in steps:
        with pytest.raises(StopIteration) as done:
            step.send(everywhere)
        means.append(done.value.value.view(-1)[:count])
    return means, [error.view(-1)[:count] for error in shards]


@every_format
def test_a_message_is_a_quarter_and_as_near_as_the_format_says(format: str) -> None:
    messages = Messages(format=format, block=BLOCK)
    x = torch.randn(3, 8 * BLOCK, generator=torch.Generator().manual_seed(0))
    sent = messages.encode(x)
    assert sent.shape == (3, messages.size(8 * BLOCK)) == (3, 8 * (BLOCK + 4))
    found, largest = messages.decode(sent), x.view(-1, BLOCK).abs().amax(1, keepdim=True)
    rounding = {"int8": 0.0, "e4m3": 2**-4, "e5m2": 2**-3}[format]
    least = {"int8": 1 / 127, "e4m3": 2**-9 / 448, "e5m2": 2**-16 / 57344}[format]
    bound = (largest * least / 2).maximum(x.view(-1, BLOCK).abs() * rounding)
    assert bool(((found - x).view(-1, BLOCK).abs() <= bound * (1 + 2**-20)).all())


@every_format
@pytest.mark.parametrize(("world", "count"), [(2, 100), (3, 5 * 3 * BLOCK), (5, 7)])
def test_what_was_sent_and_what_is_held_are_the_sum_of_the_gradients(
    format: str, world: int, count: int
) -> None:
    """Over 20 steps, up to the rounding of float32: the sum telescopes. All have the mean's bits."""
    messages, steps = Messages(format=format, block=BLOCK), 20
    draws = torch.Generator().manual_seed(1)
    errors = [torch.zeros(count) for _ in range(world)]
    sent, wanted = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for _ in range(steps):
        gradients = [torch.randn(count, generator=draws) for _ in range(world)]
        a = [gradient + error for gradient, error in zip(gradients, errors, strict=True)]
        largest = max(float(x.abs().max()) for x in a)
        means, errors = together(a, messages)
        assert all(torch.equal(mean.view(torch.int32), means[0].view(torch.int32)) for mean in means)
        assert all(float(error.abs().max()) <= world * largest / 8 for error in errors)  # E5M2's step
        sent += means[0].double()
        wanted += torch.stack(gradients).double().mean(0)
    held = torch.stack(errors).double().mean(0)
    # In a step all round their sum and their error, once in the mean, and the owner W sums: numbers below 8.
    rounding = steps * (world + 3) * 8 * 2**-24
    assert float((sent + held - wanted).abs().max()) <= rounding
    assert float(held.abs().max()) > 10 * rounding  # without what is held it is not the sum


@every_format
def test_what_is_not_finite_is_seen_by_all_and_only_in_its_blocks(format: str) -> None:
    messages = Messages(format=format, block=BLOCK)
    for bad in (torch.inf, -torch.inf, torch.nan):
        gradients = [torch.ones(6 * BLOCK), torch.ones(6 * BLOCK), torch.zeros(6 * BLOCK)]
        gradients[1][BLOCK + 3] = bad
        means, _ = together(gradients, messages)
        for mean in means:
            assert bool(mean[BLOCK : 2 * BLOCK].isnan().all())
            others = torch.cat((mean[:BLOCK], mean[2 * BLOCK :]))
            torch.testing.assert_close(others, torch.full((5 * BLOCK,), 2 / 3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("feedback", [True, False])
def test_small_gradients_beside_a_large_one_arrive_by_feedback_alone(feedback: bool) -> None:
    """f(w) = |w - 1|^2 / 2, and one gradient of +-1000 in the same block: below half a step, all round to 0.

    An int8 step is 1000 / 127 = 7.9 there. With feedback they are sent when they have added up to one.
    """
    messages, rate, world = Messages(block=BLOCK), 0.01, 2
    weights = torch.zeros(world * BLOCK)
    errors = [torch.zeros_like(weights) for _ in range(world)]
    distance = []
    for step in range(1500):
        gradient = weights - 1
        gradient[::BLOCK] = 1000 * (-1.0) ** step
        a = [gradient + error for error in errors]
        (mean, _), errors = together(a, messages)
        weights -= rate * mean
        errors = errors if feedback else [torch.zeros_like(weights) for _ in range(world)]
        small = torch.cat([block[1:] for block in weights.view(-1, BLOCK)])
        distance.append(float((small - 1).abs().max()))
    if feedback:
        # What is held back is at most half a step of each rounding, the sender's and the owner's.
        assert max(distance[-100:]) <= rate * 2 * (1000 / 127)
    else:
        assert min(distance) == 1.0


def test_what_is_no_format_or_block_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"int4.*use one of int8, e4m3, e5m2"):
        Messages(format="int4")
    with pytest.raises(RecipeError, match=r"blocks of 30 elements.*multiple of 4"):
        Messages(block=30)
