"""What crosses from forward to backward in few bits."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.passes.training.steps import Block, Gated, Maps, compiled, error, gradients, stepped

MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "written out": lambda: (Block(), torch.randn(4, 32, 64)),
    "fused": lambda: (Block(fused=True), torch.randn(4, 32, 64)),
    "relu": lambda: (Block(activation=F.relu), torch.randn(4, 32, 64)),
    "gated": lambda: (Gated(), torch.randn(8, 32, 32)),
    "maps": lambda: (Maps().eval(), torch.randn(8, 3, 16, 16)),
}
DRAWS = 24


@pytest.mark.parametrize(
    ("name", "memory"), [*((name, "act2") for name in MODELS), ("fused", "act4"), ("fused", "act8")]
)
def test_forward_is_exact_and_the_mean_of_the_gradients_too(name: str, memory: str) -> None:
    """The mean of K draws without a bias is as far from the exact gradient as one draw over sqrt(K)."""
    model, x = MODELS[name]()
    exact, expected = gradients(model, model, x)
    run, _ = compiled(model, memory=memory)
    results = [gradients(model, run, x) for _ in range(DRAWS)]
    assert all(torch.equal(result, exact) for result, _ in results)
    found = torch.stack([gradient for _, gradient in results])
    one = sum(error(gradient, expected) ** 2 for gradient in found) / DRAWS
    assert error(found.mean(0), expected) <= 1.1 * (one / DRAWS) ** 0.5


@pytest.mark.parametrize(
    ("memory", "ratios", "bound"), [("act8", (3.9, 3.9), 0.02), ("act4", (7.6, 7.6), 0.2)]
)
def test_bytes_and_error_of_a_block(memory: str, ratios: tuple[float, float], bound: float) -> None:
    """Fused, queries and keys keep 8 bits; norms' results do not cross, which makes up for them."""
    for fused, ratio in zip((False, True), ratios, strict=True):
        model, x = Block(width=256, heads=4, fused=fused), torch.randn(2, 128, 256)
        _, expected = gradients(model, model, x)
        _, found, piece = stepped(model, x, memory=memory)
        assert piece.before.crossing / piece.after.crossing >= ratio  # of what crosses in float
        assert 0 < error(found, expected) <= bound


def test_the_same_seed_draws_the_same_again_and_another_does_not() -> None:
    model, x = Block(), torch.randn(4, 16, 64)

    def two_steps(seed: int) -> tuple[Tensor, Tensor]:
        run, _ = compiled(model, memory="act4", seed=seed)
        return gradients(model, run, x)[1], gradients(model, run, x)[1]

    first, second = two_steps(0)
    assert not torch.equal(first, second)  # another step, other draws
    assert all(map(torch.equal, two_steps(0), (first, second)))
    assert not torch.equal(two_steps(1)[0], first)


class Returned(nn.Module):
    """A value that the user gets and backward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.relu(self.first(x))
        return self.second(inner), inner


def test_what_the_user_holds_is_neither_stored_nor_changed() -> None:
    model, x = Returned(), torch.randn(64, 64)
    run, training = compiled(model, memory="act4")
    results, expected = run(x), model(x)
    assert all(map(torch.equal, results, expected))
    whys = [value.why for value in training.pieces[0].saved if value.is_held]
    assert "it is a result, which whoever called holds" in whys


def test_parameters_inputs_and_statistics_cross_as_they_are() -> None:
    _, _, piece = stepped(Block(fused=True), torch.randn(4, 64, 64), memory="act2")
    reasons = {value.why for value in piece.saved if value.name not in piece.bits}
    assert reasons == {
        "it is a parameter, which is there anyway",
        "it is an input, which is there anyway",
        "it is a statistic, one number per row",
        "it has fewer than 1,024 elements",
    }


def test_what_autocast_makes_of_parameters_is_made_again_and_does_not_cross() -> None:
    model, x = Block(fused=True), torch.randn(5, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, expected = gradients(model, model, x)
        _, _, before = stepped(model, x, memory="keep")
        _, found, piece = stepped(model, x, memory="act8")
    weights = {(64, 64), (64, 256), (192, 64), (256, 64)}
    assert weights <= {value.shape for value in before.saved if value.dtype == torch.bfloat16}
    assert not weights & {value.shape for value in piece.saved if value.dtype == torch.bfloat16}
    assert error(found, expected) < 0.03


def test_a_log_sum_exp_is_never_stored_in_few_bits() -> None:
    _, _, piece = stepped(Block(width=128, heads=8, fused=True), torch.randn(8, 64, 128), memory="act4")
    (sums,) = (value for value in piece.saved if value.shape == (8, 8, 64))
    assert sums.bits == ()
    assert sums.name not in piece.bits


def test_what_attention_gives_crosses_once() -> None:
    """Its own backward reads it by heads, and the gradient of the projection behind it by rows."""
    model, x = Block(width=64, fused=True), torch.randn(4, 64, 64)
    _, expected = gradients(model, model, x)
    _, found, piece = stepped(model, x, memory="act8")
    read = [value for value in piece.saved if not value.is_held and value.count == x.numel()]
    names = {value.name: piece.bits[value.name] for value in read}
    # The second norm's input (that of the first is the model's), q, k, v, and attention's result.
    assert len(names) == 5, names
    assert set(names.values()) == {8}
    assert piece.after.crossing < 0.26 * piece.before.crossing
    assert error(found, expected) < 0.02


def test_strides_come_back() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(48, 48))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.tanh(x.t() @ self.weight).t() @ self.weight
            return y

    model, x = Turned(), torch.randn(48, 48)
    _, expected = gradients(model, model, x)
    _, found, _ = stepped(model, x, memory="act8")
    assert error(found, expected) < 0.02


def test_indices_of_pooling_cross_as_taps_and_what_was_pooled_not_at_all() -> None:
    model, x = Maps().eval(), torch.randn(8, 3, 16, 16)
    _, _, piece = stepped(model, x, memory="act8", verify=True)  # which wants each index back
    (index,) = (value for value in piece.saved if value.dtype == torch.int64)
    assert piece.bits[index.name] == 2
    wide = [value for value in piece.saved if value.shape == (8, 16, 16, 16) and not value.is_held]
    assert sorted(str(value.dtype) for value in wide) == ["torch.bool", "torch.float32"]  # relu's, norm's


@pytest.mark.parametrize(
    ("pool", "bits"),
    [
        (nn.MaxPool2d(3, stride=2, padding=1), 4),
        (nn.MaxPool2d((3, 2), ceil_mode=True), 4),
        (nn.MaxPool2d(17, stride=1), 16),  # 289 taps: no byte holds one
    ],
)
def test_pools_of_all_windows_give_the_gradient_that_they_gave(pool: nn.Module, bits: int) -> None:
    model, x = nn.Sequential(nn.Conv2d(2, 8, 3), pool), torch.randn(4, 2, 24, 24)
    _, expected = gradients(model, model, x)
    _, found, piece = stepped(model, x, memory="act8")
    assert list(piece.bits.values()) == [bits]
    assert torch.equal(found, expected)


def test_dropout_draws_the_same_mask_in_both_directions() -> None:
    model, x = Maps().train(), torch.randn(8, 3, 16, 16)
    found = []
    for memory in ("keep", "act8"):
        torch.manual_seed(3)
        fresh = Maps().train()
        fresh.load_state_dict(model.state_dict())
        run, _ = compiled(fresh, memory=memory)
        torch.manual_seed(5)
        found.append(gradients(fresh, run, x))
    assert torch.equal(found[0][0], found[1][0])
    assert error(found[1][1], found[0][1]) < 0.02


def test_overflow_stays_visible() -> None:
    model, x = Block(), torch.randn(4, 16, 64)
    x[0, 0, 0] = float("inf")
    for settings in ({"memory": "act4"}, {"recipe": "int8", "memory": "keep"}):
        run, _ = compiled(model, **settings)
        _, gradient = gradients(model, run, x)
        assert not gradient.isfinite().all()


class Masked(nn.Module):
    """Attention that does not see everything; half of the keys of each row are hidden."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (2, -1)).transpose(1, 2).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_the_mask_of_attention_crosses_as_it_is() -> None:
    """In float it holds infinities, of which a group with bounds would make NaN."""
    model, x = Masked(), torch.randn(32, 64, 64)
    mask = (torch.arange(64) % 2 == 0).expand(32, 1, 1, 64)
    run, _ = compiled(model, memory="act8")
    (_, expected), (_, found) = gradients(model, model, x, mask), gradients(model, run, x, mask)
    assert 0 < error(found, expected) < 0.02
