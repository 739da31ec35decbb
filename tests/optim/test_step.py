"""The step is that of torch.optim; the states are a quarter of its bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from qcompiler.errors import InputError, QCompilerError, RecipeError
from qcompiler.optim import Adam8bit, AdamW8bit, SGD8bit
from qcompiler.optim.codes import UNSIGNED, CodeMap

Make = Callable[..., Optimizer]

PAIRS: dict[str, tuple[Make, Make, dict[str, Any]]] = {
    "adamw": (AdamW8bit, AdamW, {"lr": 1e-2}),
    "adamw, options": (AdamW8bit, AdamW, {"betas": (0.8, 0.95), "eps": 1e-4, "maximize": True}),
    "adam": (Adam8bit, Adam, {"lr": 1e-2}),
    "adam, decay": (Adam8bit, Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (SGD8bit, SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd, no momentum": (SGD8bit, SGD, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.1}),
    "sgd, nesterov": (SGD8bit, SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "sgd, dampening": (SGD8bit, SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
}  # fmt: skip


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))


def steps(optimizers: list[Optimizer], parameters: list[nn.Parameter], count: int, seed: int = 1) -> None:
    """The same gradients for all."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        grad = torch.randn(parameters[0].shape, generator=generator)
        for one in parameters:
            one.grad = grad.to(one.dtype)
        for optimizer in optimizers:
            optimizer.step()


def state_bytes(optimizer: Optimizer, of: nn.Parameter) -> int:
    return sum(
        value.numel() * value.element_size() for name, value in optimizer.state[of].items() if name != "step"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (33, 100)], ids=str)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_with_float_states_20_steps_are_those_of_torch_to_the_last_bit(
    pair: tuple[Make, Make, dict[str, Any]],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcompiler.optim.base.CHUNK", 1024)  # the larger shape takes several
    ours, theirs, options = pair
    a, b = parameter(*shape, dtype=dtype), parameter(*shape, dtype=dtype)
    steps([ours([a], min_numel=10**9, **options), theirs([b], **options)], [a, b], 20)
    assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["transposed", "channels last"])
def test_the_layout_of_a_parameter_does_not_matter(layout: str) -> None:
    whole = parameter(8, 3, 16, 16)
    data = whole.detach().clone()
    other = (
        data.to(memory_format=torch.channels_last) if layout == "channels last" else data.mT.contiguous().mT
    )
    strided = nn.Parameter(other)
    assert not strided.is_contiguous()
    first, second = AdamW8bit([whole], lr=1e-2), AdamW8bit([strided], lr=1e-2)
    steps([first, second], [whole, strided], 5)
    assert torch.equal(whole, strided)
    assert torch.equal(first.state[whole]["exp_avg"], second.state[strided]["exp_avg"])


@pytest.mark.parametrize(
    ("make", "options", "moments"),
    [(AdamW8bit, {}, 2), (Adam8bit, {}, 2), (SGD8bit, {"lr": 0.1, "momentum": 0.9}, 1)],
)
def test_a_moment_takes_one_byte_and_a_64th_per_parameter(
    make: Make, options: dict[str, Any], moments: int
) -> None:
    large, small = parameter(512, 512), parameter(4095)
    optimizer = make([large, small], **options)
    for one in (large, small):
        one.grad = torch.ones_like(one)
    optimizer.step()
    assert state_bytes(optimizer, large) == moments * (1 + 4 / 256) * large.numel()
    assert state_bytes(optimizer, small) == moments * 4 * small.numel()
    if moments == 2:
        adam = AdamW([large])
        adam.step()
        assert state_bytes(adam, large) / state_bytes(optimizer, large) == pytest.approx(3.94, abs=0.005)


def test_the_first_step_moves_every_weight_by_the_rate() -> None:
    """From zero moments Adam's first step is -lr * sign(g) whatever g is; codes are not read before it."""
    weight = parameter(5000)
    before = weight.detach().clone()
    weight.grad = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    AdamW8bit([weight], lr=1e-2, weight_decay=0).step()
    torch.testing.assert_close(before - weight.detach(), 1e-2 * weight.grad.sign(), rtol=0, atol=1e-6)


def test_the_state_is_the_moment_within_half_a_step_of_its_map() -> None:
    ours, theirs = parameter(8192), parameter(8192)
    low, full = AdamW8bit([ours]), AdamW([theirs])
    steps([low, full], [ours, theirs], 1)
    for name, codes in AdamW8bit.moments.items():
        exact = full.state[theirs][name]
        got = codes.decode(low.state[ours][name], low.state[ours][f"{name}_absmax"])
        widest = max(b - a for a, b in zip(codes.values, codes.values[1:], strict=False)) / 2
        absmax = exact.view(-1, 256).abs().amax(1).repeat_interleave(256)
        assert ((got - exact).abs() <= widest * absmax * (1 + 1e-5)).all()
        assert not torch.equal(got, exact)


def test_bfloat16_weights_move_by_less_than_their_step_on_average() -> None:
    """An update of a 64th of a step is lost by rounding to nearest, and kept on average otherwise."""
    moved = {}
    for stochastic in (True, False):
        weight = nn.Parameter(torch.full((100_000,), 1.0, dtype=torch.bfloat16))
        optimizer = SGD8bit([weight], lr=2.0**-7 / 64, momentum=0.0, stochastic_rounding=stochastic)
        for _ in range(8):
            weight.grad = -torch.ones_like(weight)
            optimizer.step()
        moved[stochastic] = weight.double().mean().item() - 1
    assert moved[False] == 0
    # five standard deviations: 8 draws of 2^-7 with probability 1/64 each, for 100,000 weights
    assert moved[True] == pytest.approx(2.0**-7 / 8, abs=5 * 2.0**-7 * (8 / 64 / 100_000) ** 0.5)


def test_rounding_follows_from_seed_step_and_ordinal() -> None:
    def run(seed: int, ahead: int = 0) -> Tensor:
        weights = [parameter(5000, dtype=torch.bfloat16) for _ in range(ahead + 1)]
        steps([AdamW8bit(weights, seed=seed)], weights, 3)
        return weights[-1].detach()

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1)) and not torch.equal(run(0), run(0, ahead=1))


def test_a_step_of_rate_zero_leaves_bfloat16_weights_alone() -> None:
    """torch.distributed.checkpoint takes such a step to make the states that it loads into."""
    weight = parameter(5000, dtype=torch.bfloat16)
    before = weight.detach().clone()
    steps([AdamW8bit([weight], lr=0.0)], [weight], 3)
    assert torch.equal(weight, before)


def test_half_precision_weights_are_stepped_in_float32() -> None:
    weight, exact = parameter(5000, dtype=torch.float16), parameter(5000)
    exact.data.copy_(weight.data)
    steps([AdamW8bit([weight]), AdamW8bit([exact])], [weight, exact], 1)
    torch.testing.assert_close(weight.float(), exact.detach().half().float(), rtol=2.0**-10, atol=0)


def test_groups_have_their_own_options_and_schedulers_drive_them() -> None:
    ours, theirs = [parameter(64, 64), parameter(10)], [parameter(64, 64), parameter(10)]

    def groups(of: list[nn.Parameter], **more: Any) -> list[dict[str, Any]]:
        return [{"params": of[:1], "lr": 0.1, **more}, {"params": of[1:], "weight_decay": 0.5}]

    pair = (AdamW8bit(groups(ours, min_numel=10**9)), AdamW(groups(theirs)))
    schedules = [torch.optim.lr_scheduler.OneCycleLR(one, [0.1, 0.01], total_steps=10) for one in pair]
    for number in range(6):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.full_like(mine, number - 2.5)
            other.grad = mine.grad.clone()
        for optimizer, schedule in zip(pair, schedules, strict=True):
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            schedule.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_a_rate_may_be_a_tensor_and_a_closure_gives_the_loss() -> None:
    weight = parameter(5000)
    optimizer = AdamW8bit([weight], lr=torch.tensor(0.1))

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch annotates no backward
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(3)]
    assert all(loss is not None for loss in losses) and losses == sorted(losses, reverse=True)  # type: ignore[type-var]


def test_parameters_without_a_gradient_are_left_alone_and_have_no_state() -> None:
    weight, idle = parameter(5000), parameter(5000)
    optimizer = AdamW8bit([weight, idle])
    steps([optimizer], [weight], 1)
    assert idle not in optimizer.state and torch.equal(idle, parameter(5000))


@pytest.mark.parametrize("kept", [True, False])
def test_a_weight_whose_gradient_ends_takes_no_giant_step(kept: bool) -> None:
    """As a row of an embedding that is used once, beside rows with larger gradients.

    Its second moment is 1e-8 of the largest of its block. Coded as 0 it would leave m / eps as the step.
    """

    class Nearest(AdamW8bit):
        moments: ClassVar[Mapping[str, CodeMap]] = {
            **AdamW8bit.moments, "exp_avg_sq": replace(UNSIGNED, keeps_positive=kept)
        }  # fmt: skip

    low, full = nn.Parameter(torch.zeros(4096)), nn.Parameter(torch.zeros(4096))
    optimizers, moved = (Nearest([low]), AdamW([full])), []
    first = torch.full((4096,), 1e-4)
    first[::256] = 1
    for grad in (first, torch.zeros(4096)):
        before = [one.detach().clone() for one in (low, full)]
        for one, optimizer in zip((low, full), optimizers, strict=True):
            one.grad = grad.clone()
            optimizer.step()
        moved = [(one - old).abs().max().item() for one, old in zip((low, full), before, strict=True)]
    # the second moment comes back as at least 7.75 / 14.5 of itself (see test_codes.py)
    assert (moved[0] <= moved[1] * (14.5 / 7.75) ** 0.5) is kept


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_shows(bad: float) -> None:
    weight = parameter(5000)
    optimizer = AdamW8bit([weight])
    weight.grad = torch.ones_like(weight)
    weight.grad[300] = bad
    for _ in range(2):
        optimizer.step()
    assert weight[300].isnan() and torch.isfinite(weight[512:]).all()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "options", "why"),
    [
        (AdamW8bit, {"lr": -1.0}, r"lr = -1; use a number from 0 on"),
        (AdamW8bit, {"lr": float("nan")}, "lr = nan"),
        (Adam8bit, {"eps": -1e-8}, "eps"),
        (Adam8bit, {"betas": (1.0, 0.999)}, r"betas\[0\] = 1"),
        (Adam8bit, {"betas": (0.9, -0.1)}, r"betas\[1\]"),
        (AdamW8bit, {"weight_decay": -0.1}, "weight_decay"),
        (AdamW8bit, {"min_numel": -1}, "min_numel"),
        (SGD8bit, {"lr": 0.1, "momentum": -0.9}, "momentum"),
        (SGD8bit, {"lr": 0.1, "momentum": 0.0, "nesterov": True}, "nesterov"),
        (SGD8bit, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "nesterov": True}, "nesterov"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Make, options: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        make([parameter(4)], **options)


def test_a_group_that_is_refused_is_not_taken_up() -> None:
    optimizer = AdamW8bit([parameter(4)])
    with pytest.raises(RecipeError):
        optimizer.add_param_group({"params": [parameter(5)], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(InputError, match="complex64"):
        AdamW8bit([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    table = nn.Embedding(100, 50, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(QCompilerError, match="sparse=False"):
        AdamW8bit(table.parameters()).step()
