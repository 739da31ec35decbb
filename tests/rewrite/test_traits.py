"""Every claim of the table of traits, tried on random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.numerics import PerTensor, fake_quantize, params_from_range, parse_format
from qcompiler.rewrite import TRAITS, Trait

aten = torch.ops.aten
qc = torch.ops.qcompiler
Op = Callable[..., Tensor]

# The shape of the operands (IMAGE where none is given), and the arguments that follow them.
IMAGE, MATRIX = (2, 4, 6, 6), (3, 8)
EXAMPLES: dict[Any, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    aten.conv1d.default: ((2, 4, 6), (torch.randn(5, 4, 3, dtype=torch.float64),)),
    aten.conv2d.default: (IMAGE, (torch.randn(5, 4, 3, 3, dtype=torch.float64), None, [2, 2], [1, 1])),
    aten.conv3d.default: ((2, 4, 5, 5, 5), (torch.randn(5, 4, 3, 3, 3, dtype=torch.float64),)),
    aten.layer_norm.default: (MATRIX, ([8], torch.randn(8, dtype=torch.float64))),
    aten.rms_norm.default: (MATRIX, ([8], torch.randn(8, dtype=torch.float64))),
    aten.linear.default: (MATRIX, (torch.randn(5, 8, dtype=torch.float64),)),
    aten.matmul.default: (MATRIX, (torch.randn(8, 5, dtype=torch.float64),)),
    aten.bmm.default: ((2, 3, 8), (torch.randn(2, 8, 5, dtype=torch.float64),)),
    aten.hardtanh.default: (IMAGE, (-0.5, 1.0)),
    aten.clamp.default: (IMAGE, (-0.5, 1.0)),
    aten.avg_pool1d.default: ((2, 3, 8), ([3], [2], [1])),
    aten.max_pool1d.default: ((2, 3, 8), ([3], [2], [1])),
    aten.avg_pool2d.default: (IMAGE, ([3, 3], [2, 2], [1, 1])),
    aten.max_pool2d.default: (IMAGE, ([3, 3], [2, 2], [1, 1])),
    aten.amax.default: (IMAGE, ([2, 3], True)),
    aten.view.default: (IMAGE, ([2, -1],)),
    aten.reshape.default: (IMAGE, ([2, -1],)),
    aten._unsafe_view.default: (IMAGE, ([2, -1],)),
    aten.permute.default: (IMAGE, ([0, 2, 3, 1],)),
    aten.transpose.int: (IMAGE, (1, 2)),
    aten.t.default: (MATRIX, ()),
    aten.squeeze.dim: ((3, 1, 4), (1,)),
    aten.squeeze.dims: ((3, 1, 4, 1), ([1, 3],)),
    aten.unsqueeze.default: (IMAGE, (1,)),
    aten.slice.Tensor: (IMAGE, (2, 1, 6, 2)),
    aten.select.int: (IMAGE, (1, 2)),
    aten.expand.default: ((3, 1, 4), ([3, 5, 4],)),
    aten.flip.default: (IMAGE, ([2],)),
    aten.pixel_shuffle.default: (IMAGE, (2,)),
    aten.dropout.default: (IMAGE, (0.5, False)),
}


def function_of(op: Any) -> tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]:
    """The op as a function of the operands that its traits speak of, and a source of random operands."""
    shape, rest = EXAMPLES.get(op, (IMAGE, ()))

    def draw() -> list[Tensor]:
        return [torch.randn(shape, dtype=torch.float64) * 2 for _ in range(operands(op))]

    def function(*given: Tensor) -> Tensor:
        if Trait.JOINS in TRAITS.get(op, Trait.NONE):
            return op(list(given), 1)  # type: ignore[no-any-return]
        return op(*given, *rest)  # type: ignore[no-any-return]

    return function, draw


def operands(op: Any) -> int:
    return 2 if TRAITS.get(op, Trait.NONE) & (Trait.COMMUTES | Trait.JOINS) else 1


def close(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-12, atol=1e-12)


def is_elementwise(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    """Each output element follows from the input elements in its place, and from no other."""
    given = draw()
    before = f(*given)
    given[0].view(-1)[7] += 1.5
    changed = (f(*given) != before).view(-1).nonzero().flatten().tolist()
    return before.shape == given[0].shape and changed in ([], [7])


def is_monotone(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    given = draw()
    larger = [x + torch.rand_like(x) * 3 for x in given]
    return bool((f(*given) <= f(*larger) + 1e-12).all())


def is_homogeneous(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    given = draw()
    return all(close(f(*(a * x for x in given)), a * f(*given)) for a in (0.3, 7.0))


def is_homogeneous_in_the_first(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    first, *rest = draw()
    return all(close(f(a * first, *rest), a * f(first, *rest)) for a in (0.3, 7.0))


def is_linear(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    one, other = draw(), draw()
    return close(f(*map(torch.add, one, other)), f(*one) + f(*other))


def is_linear_in_each(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    (x, z), (y, w) = draw(), draw()
    return close(f(x + y, z), f(x, z) + f(y, z)) and close(f(x, z + w), f(x, z) + f(x, w))


def is_commutative(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    given = draw()
    return torch.equal(f(*given), f(*reversed(given)))


def is_clamp(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    (x,) = draw()
    y = f(x)
    lo, hi = y.min(), y.max()
    return torch.equal(f(y), y) and torch.equal(y, x.clamp(lo, hi)) and bool((x != y).any())


def is_identity(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    (x,) = draw()
    return torch.equal(f(x), x)


def keeps_elements(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    given = draw()
    allowed = {0.0}.union(*(x.flatten().tolist() for x in given))
    return set(f(*given).flatten().tolist()) <= allowed


def moves_by_position(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    """The same elements go to the same places whatever they are."""
    (x,) = draw()
    places = f(torch.arange(x.numel(), dtype=torch.float64).view(x.shape))
    return torch.equal(f(x), x.view(-1)[places.long()])


def passes_a_quantizer(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    """f(F(x)) = F(f(x)) bit for bit, for quantizers with and without a zero point."""
    given = [x.float() for x in draw()]
    answers = []
    for scheme, format in (("asymmetric", "uint8"), ("symmetric", "int8"), ("asymmetric", "int4")):
        params = params_from_range(-2.0, 3.0, parse_format(format), PerTensor(), scheme=scheme)  # type: ignore[arg-type]
        quantized = [fake_quantize(x, params) for x in given]
        answers.append(torch.equal(f(*quantized), fake_quantize(f(*given), params)))
    return all(answers)


def treats_rows_alone(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    first, *rest = draw()
    return all(close(f(first, *rest)[i], f(first[i], *rest)) for i in range(len(first)))


def averages(f: Op, draw: Callable[[], list[Tensor]]) -> bool:
    given = draw()
    return f(*given).numel() < given[0].numel()


Check = Callable[[Op, Callable[[], list[Tensor]]], bool]
CHECKS: dict[Trait, tuple[Check, ...]] = {
    Trait.ELEMENTWISE: (is_elementwise,),
    Trait.MONOTONE: (is_monotone,),
    Trait.HOMOGENEOUS: (is_homogeneous,),
    Trait.LINEAR: (is_linear,),
    Trait.MOVES_DATA: (moves_by_position, passes_a_quantizer),
    Trait.SELECTS: (keeps_elements, passes_a_quantizer),
    Trait.CLAMPS: (is_clamp,),
    Trait.COMMUTES: (is_commutative,),
    Trait.MIXES_CHANNELS: (),  # a word for what it is made of
    Trait.REDUCES: (averages,),
    Trait.JOINS: (keeps_elements, passes_a_quantizer),
    Trait.IDENTITY: (is_identity,),
    Trait.ROWWISE: (treats_rows_alone,),
}
# A product is linear and homogeneous in each factor alone; every other op in all its operands together.
BILINEAR: dict[Trait, tuple[Check, ...]] = {
    Trait.HOMOGENEOUS: (is_homogeneous_in_the_first,),
    Trait.LINEAR: (is_linear_in_each,),
}
CLAIMS = [(op, trait) for op, traits in TRAITS.items() for trait in traits]


def holds(op: Any, trait: Trait) -> bool:
    checks = CHECKS | BILINEAR if op is aten.mul.Tensor else CHECKS
    return all(check(*function_of(op)) for check in checks[trait])


def test_every_trait_has_its_check() -> None:
    assert set(CHECKS) == set(Trait)


@pytest.mark.parametrize(("op", "trait"), CLAIMS, ids=str)
def test_claim(op: Any, trait: Trait) -> None:
    assert holds(op, trait)


@pytest.mark.parametrize(
    ("op", "trait"),
    [
        (aten.gelu.default, Trait.MONOTONE),
        (aten.silu.default, Trait.MONOTONE),
        (aten.hardswish.default, Trait.MONOTONE),
        (aten.neg.default, Trait.MONOTONE),
        (aten.sigmoid.default, Trait.HOMOGENEOUS),
        (aten.clamp.default, Trait.HOMOGENEOUS),
        (aten.relu.default, Trait.LINEAR),
        (aten.leaky_relu.default, Trait.CLAMPS),
        (aten.tanh.default, Trait.CLAMPS),
        (aten.sub.Tensor, Trait.COMMUTES),
        (aten.add.Tensor, Trait.SELECTS),
        (aten.mul.Tensor, Trait.MONOTONE),
        (aten.avg_pool2d.default, Trait.SELECTS),
        (aten.max_pool2d.default, Trait.MOVES_DATA),
        (aten.max_pool2d.default, Trait.LINEAR),
        (aten.cumsum.default, Trait.ELEMENTWISE),
        (aten.neg.default, Trait.MOVES_DATA),
        (aten.relu.default, Trait.IDENTITY),
        (aten.flip.default, Trait.REDUCES),
    ],
    ids=str,
)
def test_a_wrong_claim_fails(op: Any, trait: Trait, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXAMPLES, aten.cumsum.default, (IMAGE, (3,)))
    monkeypatch.setitem(TRAITS, op, TRAITS.get(op, Trait.NONE) | trait)
    assert not holds(op, trait)
