"""A run that is saved and loaded goes on to the same bits."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from qcompiler.errors import InputError
from qcompiler.optim import Adam8bit, AdamW8bit, SGD8bit

MAKERS: dict[str, Any] = {
    "adamw": AdamW8bit,
    "adam": Adam8bit,
    "sgd": lambda parameters, **options: SGD8bit(parameters, **{"lr": 0.1, "momentum": 0.9, **options}),
}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)).to(dtype)


def train(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    """Steps `first` to `last`; the batch follows from the number of the step."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(16, 64, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The two matrices: the first has 8-bit states, the second is too small."""
    return [parameter for parameter in model.parameters() if parameter.ndim == 2]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_a_run_that_is_saved_and_loaded_goes_on_to_the_same_bits(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole, part, resumed = network(dtype), network(dtype), network(dtype)
    optimizer = MAKERS[name](whole.parameters(), seed=5)
    train(whole, optimizer, 0, 8)

    optimizer = MAKERS[name](part.parameters(), seed=5)
    train(part, optimizer, 0, 4)
    torch.save({"model": part.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")

    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    again = MAKERS[name](resumed.parameters())  # with another seed, until the state is loaded
    again.load_state_dict(saved["optimizer"])
    for given, state in zip(saved["optimizer"]["state"].values(), again.state.values(), strict=True):
        for key, value in given.items():
            assert torch.equal(state[key], value) and state[key].dtype == value.dtype
            assert state[key].data_ptr() != value.data_ptr()
    train(resumed, again, 4, 8)
    assert equal(whole, resumed)

    fresh = MAKERS[name](part.parameters(), seed=5)  # the test can fail: without its state the run differs
    train(part, fresh, 4, 8)
    assert not equal(whole, part)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_to_the_same_bits(copied: Any) -> None:
    model = network(torch.bfloat16)
    optimizer = AdamW8bit(model.parameters(), seed=3)
    train(model, optimizer, 0, 3)
    other, twin = copied((model, optimizer))
    train(model, optimizer, 3, 6)
    train(other, twin, 3, 6)
    assert equal(model, other) and type(twin) is AdamW8bit


def test_groups_of_a_state_come_back_with_their_options() -> None:
    first, second = weights(network())
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.5, "min_numel": 0}, {"params": [second]}]
    optimizer = AdamW8bit(groups, seed=4)
    for parameter in (first, second):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    again = AdamW8bit([{"params": [parameter]} for parameter in weights(network())])
    again.load_state_dict(optimizer.state_dict())
    assert [(group["lr"], group["min_numel"], group["seed"]) for group in again.param_groups] == [
        (0.5, 0, 4), (1e-3, 4096, 4)
    ]  # fmt: skip


def test_the_states_of_torch_are_taken_over_and_encoded() -> None:
    for theirs, ours, name in (
        (AdamW, AdamW8bit, "exp_avg_sq"),
        (lambda of: SGD(of, lr=0.1, momentum=0.9), MAKERS["sgd"], "momentum_buffer"),
    ):
        model = network(torch.bfloat16)
        optimizer = theirs(model.parameters())
        train(model, optimizer, 0, 3)
        low = ours(model.parameters())
        low.load_state_dict(optimizer.state_dict())
        large, small = (low.state[weight] for weight in weights(model))
        exact = optimizer.state[weights(model)[0]][name].float()
        got = low.moments[name].decode(large[name].flatten(), large[f"{name}_absmax"]).view_as(exact)
        assert large[name].dtype == torch.uint8 and small[name].dtype == torch.float32
        # half the widest step of the signed map, of the largest of all
        assert (got - exact).abs().max() <= 0.9 / 64 / 2 * exact.abs().max() * (1 + 1e-5)
        train(model, low, 3, 5)


def test_a_state_of_torch_may_have_the_layout_of_its_parameter() -> None:
    """Float moments that stay float, of a parameter that is not row-major: stepped as torch steps them."""
    data = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (nn.Parameter(data.to(memory_format=torch.channels_last, copy=True)) for _ in range(2))
    full, low = AdamW([theirs]), AdamW8bit([ours])
    for number in range(4):
        for one in (ours, theirs):
            one.grad = torch.cos(data * number).to(memory_format=torch.channels_last)
        full.step()
        if number == 1:
            ours.data.copy_(theirs)
            low.load_state_dict(full.state_dict())
        if number > 1:
            low.step()
    assert torch.equal(ours, theirs) and low.state[ours]["exp_avg"].is_contiguous()


def test_hooks_of_the_user_see_the_state_that_is_used() -> None:
    model = network(torch.bfloat16)
    optimizer = AdamW8bit(model.parameters())
    train(model, optimizer, 0, 2)
    seen = []

    def rate(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "lr": 0.25} for group in state["param_groups"]]}

    again = AdamW8bit(model.parameters())
    again.register_load_state_dict_pre_hook(rate)
    again.register_load_state_dict_post_hook(
        lambda of: seen.append({value.dtype for value in of.state[weights(model)[0]].values()})
    )
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == 0.25
    assert seen == [{torch.uint8, torch.float32}]


def test_a_state_of_another_model_is_refused_before_anything_changes() -> None:
    model, wider = network(), nn.Sequential(nn.Linear(64, 101), nn.ReLU(), nn.Linear(101, 10))
    optimizer, other = AdamW8bit(model.parameters()), AdamW8bit(wider.parameters())
    train(model, optimizer, 0, 1)
    train(wider, other, 0, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InputError, match=r"\(101, 64\).*the parameter has shape \(100, 64\)"):
        optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert all(
        torch.equal(value, after["state"][number][name])
        for number, state in before["state"].items()
        for name, value in state.items()
    )
    with pytest.raises(ValueError, match="parameter group"):
        AdamW8bit(weights(wider)[:1]).load_state_dict(other.state_dict())
    for state in other.state.values():
        state.pop("exp_avg_absmax", None)
    with pytest.raises(InputError, match="with no scales"):
        other.load_state_dict(other.state_dict())
