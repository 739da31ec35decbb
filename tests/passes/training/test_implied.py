"""What follows from values that cross anyway does not cross."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.numerics.bias import measure_bias
from qcompiler.training import Piece
from tests.passes.training.steps import compiled, error, gradients, stepped

WIDTH = 256  # a group, so that rows share none
NARROW = 48


class Between(nn.Module):
    """linear, norm, what comes behind, linear: its values of full size that cross are told by name."""

    def __init__(self, norm: nn.Module, behind: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, WIDTH)
        self.behind = behind

    def forward(self, x: Tensor) -> Any:
        return self.last(self.behind(self.norm(self.first(x))))


class WrittenOut(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def drawn(norm: nn.Module) -> nn.Module:
    """The norm with weights that are not what they are set to at first."""
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def crossing(model: nn.Module, x: Tensor, **settings: Any) -> int:
    """Values of the size of an activation that cross, and that nobody holds."""
    return wide(stepped(model, x, **settings)[2], x)


def wide(piece: Piece, x: Tensor) -> int:
    return sum(value.count == x.numel() and not value.is_held for value in piece.saved)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(WIDTH),
    "layer, no bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "layer, nothing to learn": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "layer, two axes": lambda: nn.LayerNorm((2, WIDTH)),
    "rms": lambda: nn.RMSNorm(WIDTH),
    "rms, written out": WrittenOut,
}
X = (8, 2, WIDTH)


@pytest.mark.parametrize("name", NORMS)
def test_a_norms_result_does_not_cross_beside_its_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Between(drawn(NORMS[name]())), torch.randn(X)
    _, expected = gradients(model, model, x)
    monkeypatch.setattr("qcompiler.training.session.store", lambda *_: None)  # rewritten, and nothing rounded
    _, found, piece = stepped(model, x, memory="act4")
    assert wide(piece, x) == 1
    assert error(found, expected) < 1e-6


def test_a_norm_under_autocast_is_computed_in_the_types_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU torch says of its statistics that they are rounded: what it gives crosses, n, and x's cast."""
    model, x = Between(drawn(nn.LayerNorm(WIDTH))), torch.randn(X)
    monkeypatch.setattr("qcompiler.training.session.store", lambda *_: None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, expected = gradients(model, model, x)
        _, found, piece = stepped(model, x, memory="act4")
    assert wide(piece, x) == 3
    assert error(found, expected) < 2**-7  # a rounding to bfloat16 that falls the other way


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_norms_of_other_types(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Between(drawn(nn.LayerNorm(WIDTH))).to(dtype), torch.randn(X, dtype=dtype)
    nn.init.constant_(model.first.bias, 10.0)  # a mean that a type rounds
    monkeypatch.setattr("qcompiler.training.session.store", lambda *_: None)

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        model.zero_grad()
        y = run(x)
        torch.autograd.backward(y, torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
        return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient(model)
    run, _ = compiled(model, memory="act4")
    assert error(gradient(run), expected) < 8 * torch.finfo(dtype).eps


class Permuted(nn.Module):
    """A norm over the channels of images, whose input does not lie row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 16, 1), nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x).permute(0, 2, 3, 1)))
        return y


def test_norms_of_what_does_not_lie_row_by_row() -> None:
    model, x = Permuted(), torch.randn(4, 3, 16, 16)
    _, expected = gradients(model, model, x)
    _, found, _ = stepped(model, x, memory="act8")
    assert error(found, expected) < 0.02


class Padded(nn.Module):
    """Words and padding: rows of zeros beside rows of ones, several in one group."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, NARROW, padding_idx=0)
        self.norm, self.last = norm(NARROW), nn.Linear(NARROW, NARROW)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.embedding(tokens)))
        return y


@pytest.mark.parametrize("norm", [nn.LayerNorm, WrittenOut], ids=["layer", "rms"])
def test_a_row_of_small_numbers_beside_large_ones_keeps_its_own_noise(
    norm: Callable[[int], nn.Module],
) -> None:
    model, tokens = Padded(norm), torch.randint(1, 100, (32, 8))
    tokens[:, 5:] = 0
    _, expected = gradients(model, model, tokens)
    _, found, _ = stepped(model, tokens, memory="act8")
    assert error(found, expected) < 0.02


class Shifted(nn.Module):
    """A sum with a buffer that the step changes, before a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mean = nn.Buffer(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y: Tensor = self.one(h) + self.other(h - self.mean)
        with torch.no_grad():
            self.mean.mul_(0.5).add_(h.mean(0))
        return y


def test_nothing_is_computed_from_what_may_have_changed_since() -> None:
    model, x = Shifted(), torch.randn(64, WIDTH)
    before = model.mean.clone()
    _, expected = gradients(model, model, x)
    with torch.no_grad():
        model.mean.copy_(before)
    _, found, _ = stepped(model, x, memory="act8")
    assert error(found, expected) < 0.02


def test_a_batch_may_be_loaded_into_the_place_of_the_last() -> None:
    class Plus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.one, self.other = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            h = self.first(x)
            y: Tensor = self.one(h) + self.other(h + z)
            return y

    model, x, z = Plus(), torch.randn(64, WIDTH), torch.randn(64, WIDTH)
    _, expected = gradients(model, model, x, z)
    run, _ = compiled(model, memory="act8")
    model.zero_grad()
    y = run(x, z)
    z.copy_(torch.randn(64, WIDTH))
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
    torch.autograd.backward(F.mse_loss(y, target))
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert error(found, expected) < 0.02


BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "square": torch.square, "y y": lambda y: y * y, "silu": lambda y: y * y.sigmoid(),
    "rounded": lambda y: y + (3 * y).int().float(), "outer": lambda y: y[..., :1] * y,
}  # fmt: skip


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(behind, id=name, marks=[] if name in ("y y", "silu") else [pytest.mark.thorough])
        for name, behind in BENT.items()
    ],
)
def test_what_is_not_linear_in_what_is_stored_crosses(behind: Callable[[Tensor], Tensor]) -> None:
    """Noise in x would be bent on its way, and the mean of many draws be wrong."""
    model, x = Between(drawn(nn.LayerNorm(WIDTH)), behind), torch.randn(X)
    _, expected = gradients(model, model, x)
    run, training = compiled(model, memory="act4")
    found = measure_bias((gradients(model, run, x)[1] for _ in range(64)), expected)
    assert wide(training.pieces[0], x) >= 2
    assert found.z < 4


def test_what_is_linear_behind_a_norm_does_not_cross_either() -> None:
    model = Between(drawn(nn.LayerNorm(WIDTH)), lambda y: (2 * y - 1).transpose(0, 1).contiguous())
    assert crossing(model, torch.randn(X), memory="keep") == 2
    assert crossing(model, torch.randn(X), memory="act4") == 1


def test_what_the_user_holds_is_read_from_there() -> None:
    class Both(Between):
        def forward(self, x: Tensor) -> Any:
            y = self.norm(self.first(x))
            return self.last(y), y

    model, x = Both(drawn(nn.LayerNorm(WIDTH))), torch.randn(X)

    def gradient(run: Callable[[Tensor], Any]) -> Tensor:
        model.zero_grad()
        torch.autograd.backward([result.square().sum() for result in run(x)])
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient(model)
    run, training = compiled(model, memory="act4")
    assert error(gradient(run), expected) < 0.2
    (piece,) = training.pieces
    assert "it is a result, which whoever called holds" in {value.why for value in piece.saved}


def test_a_chain_of_sums_crosses_again_after_some_steps() -> None:
    """x + 1 + 1 ...: whoever computes a value of the tenth sum again would compute all ten."""

    class Sums(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.first, self.other, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.shifts = nn.ParameterList(torch.randn(WIDTH) for _ in range(count))

        def forward(self, x: Tensor) -> Tensor:
            start = y = self.first(x)
            for shift in self.shifts:
                y = y + shift
            result: Tensor = self.other(start) + self.last(y)
            return result

    x = torch.randn(64, WIDTH)
    assert crossing(Sums(2), x, memory="act4") == 1
    assert crossing(Sums(12), x, memory="act4") == 2
