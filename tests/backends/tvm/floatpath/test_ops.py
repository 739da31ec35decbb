"""Every row of the table against torch, on random shapes and numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.backends.tvm.floatpath.ops import CONTRACTIONS, COPIES, ELEMENTWISE, MOVEMENT, OPS, REDUCTIONS
from tests.backends.tvm.floatpath.example import Of, by_torch, computed, exactly, graph_of, groups_in
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]
aten = torch.ops.aten

Draw = random.Random
Case = Callable[[Draw], tuple[Callable[..., Any], list[Tensor]]]


def numbers(draw: Draw, *shape: int, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw.randrange(1 << 30))) * scale


def shape(draw: Draw, rank: int | None = None) -> list[int]:
    return [draw.choice([1, 2, 3, 5, 16, 33, 70]) for _ in range(rank or draw.randint(1, 3))]


def one(function: Callable[[Tensor], Any], *, positive: bool = False, rank: int | None = None) -> Case:
    def case(draw: Draw) -> tuple[Callable[..., Any], list[Tensor]]:
        x = numbers(draw, *shape(draw, rank))
        return function, [x.abs() + 0.1 if positive else x]

    return case


def two(function: Callable[..., Any]) -> Case:
    """The second operand may be repeated along axes of the first."""

    def case(draw: Draw) -> tuple[Callable[..., Any], list[Tensor]]:
        sizes = shape(draw)
        other = [draw.choice([1, size]) for size in sizes][draw.randrange(len(sizes)) :]
        return function, [numbers(draw, *sizes), numbers(draw, *other)]

    return case


def along(function: Callable[[Tensor, Any, bool], Any], *, several: bool = True) -> Case:
    """Over some axes, kept or not."""

    def case(draw: Draw) -> tuple[Callable[..., Any], list[Tensor]]:
        x = numbers(draw, *shape(draw, draw.randint(2, 3)))
        count = draw.randint(1, x.dim()) if several else 1
        axes, keep = draw.sample(range(-x.dim(), 0), count), draw.random() < 0.5
        return lambda x: function(x, axes if several else axes[0], keep), [x]

    return case


def conv(rank: int, *, turned: bool = False, same: bool = False) -> Case:
    """A convolution of random stride, padding, dilation and groups."""

    def case(draw: Draw) -> tuple[Callable[..., Any], list[Tensor]]:
        torch.manual_seed(draw.randrange(1 << 30))
        groups, kernel = draw.choice([1, 1, 2]), draw.choice([1, 2, 3])
        kind: Any = getattr(nn, f"Conv{'Transpose' if turned else ''}{rank}d")
        stride, padding, dilation = draw.choice([1, 2, 3]), draw.choice([0, 1]), draw.choice([1, 2])
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        if same:
            options = {"padding": draw.choice(["same", "valid"]), "dilation": dilation}
        if turned:
            options["output_padding"] = draw.randrange(max(stride, dilation))
        layer = kind(2 * groups, 4, kernel, groups=groups, bias=draw.random() < 0.5, **options)
        return layer, [numbers(draw, 2, 2 * groups, *(draw.randint(5, 9) for _ in range(rank)))]

    return case


def with_weights(make: Callable[[Draw], nn.Module], *sizes: int) -> Case:
    def case(draw: Draw) -> tuple[Callable[..., Any], list[Tensor]]:
        module = make(draw)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data = numbers(draw, *tensor.shape).abs() + 0.1
        return module, [numbers(draw, *sizes)]

    return case


def images(function: Callable[[Tensor], Any]) -> Case:
    def case(draw: Draw) -> tuple[Callable[..., Any], list[Tensor]]:
        return function, [numbers(draw, 2, 3, draw.randint(4, 9), draw.randint(4, 20))]

    return case


CASES: dict[Any, Case] = {
    aten.add.Tensor: two(lambda a, b: torch.add(a, b, alpha=3)),
    aten.sub.Tensor: two(torch.sub),
    aten.mul.Tensor: two(torch.mul),
    aten.div.Tensor: two(lambda a, b: a / (b.abs() + 0.1)),
    aten.maximum.default: two(torch.maximum),
    aten.minimum.default: two(torch.minimum),
    aten.rsub.Scalar: one(lambda x: torch.rsub(x, 2.5, alpha=2)),
    aten.lerp.Scalar: two(lambda a, b: torch.lerp(a, a * 2, 0.3)),
    aten.relu.default: one(torch.relu),
    aten.neg.default: one(torch.neg),
    aten.abs.default: one(torch.abs),
    aten.square.default: one(torch.square),
    aten.sqrt.default: one(torch.sqrt, positive=True),
    aten.rsqrt.default: one(torch.rsqrt, positive=True),
    aten.reciprocal.default: one(torch.reciprocal, positive=True),
    aten.exp.default: one(torch.exp),
    aten.tanh.default: one(torch.tanh),
    aten.erf.default: one(torch.erf),
    aten.sigmoid.default: one(torch.sigmoid),
    aten.silu.default: one(F.silu),
    aten.hardsigmoid.default: one(F.hardsigmoid),
    aten.hardswish.default: one(F.hardswish),
    aten.gelu.default: one(lambda x: F.gelu(x) + F.gelu(x, approximate="tanh")),
    aten.elu.default: one(lambda x: F.elu(x, 1.5)),
    aten.leaky_relu.default: one(lambda x: F.leaky_relu(x, 0.2)),
    aten.prelu.default: with_weights(lambda draw: nn.PReLU(draw.choice([1, 6])), 2, 6, 5),
    aten.clamp.default: one(lambda x: torch.clamp(x, -1.0, 0.5)),
    aten.clamp_min.default: one(lambda x: torch.clamp_min(x, 0.3)),
    aten.clamp_max.default: one(lambda x: torch.clamp_max(x, 0.3)),
    aten.hardtanh.default: one(F.hardtanh),
    aten.pow.Tensor_Scalar: one(lambda x: x**3 + x**0.5 + x**2 + x**-0.5, positive=True),
    aten.batch_norm.default: with_weights(lambda draw: nn.BatchNorm1d(6), 2, 6, 5),
    aten.expand.default: one(lambda x: x.unsqueeze(0).expand(3, *x.shape) * 2),
    aten.permute.default: one(lambda x: x.permute(2, 0, 1) * 2, rank=3),
    aten.transpose.int: one(lambda x: x.transpose(0, -1) * 2, rank=3),
    aten.t.default: one(lambda x: x.t() * 2, rank=2),
    aten.unsqueeze.default: one(lambda x: x.unsqueeze(-1) * 2),
    aten.squeeze.dim: one(lambda x: (x.unsqueeze(1) * 2).squeeze(1) * 3),
    aten.squeeze.dims: one(lambda x: (x[:, None, :, None] * 2).squeeze((1, 3)) * 3, rank=2),
    aten.select.int: one(lambda x: x.select(1, -1) * 2, rank=3),
    aten.slice.Tensor: one(lambda x: x[:, :-1:2] * 2 if x.shape[1] > 1 else x * 2, rank=2),
    aten.flip.default: one(lambda x: x.flip(0, -1) * 2, rank=2),
    aten.cat.default: one(lambda x: torch.cat([x * 2, x, -x], -1)),
    aten.stack.default: one(lambda x: torch.stack([x * 2, x, -x], 1)),
    aten.constant_pad_nd.default: images(lambda x: F.pad(x, (2, 0, -1, 3), value=0.5)),
    aten.pad.default: images(lambda x: F.pad(x, (2, 1, 0, 3), mode="reflect")),
    aten.upsample_nearest1d.vec: images(lambda x: F.interpolate(x[0], scale_factor=2.5)),
    aten.upsample_nearest2d.vec: images(lambda x: F.interpolate(x, scale_factor=3)),
    aten.upsample_nearest3d.vec: images(lambda x: F.interpolate(x[None], size=(5, 11, 7))),
    aten.upsample_linear1d.vec: images(lambda x: F.interpolate(x[0], scale_factor=2, mode="linear")),
    aten.upsample_bilinear2d.vec: images(
        lambda x: F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True)
        + F.interpolate(x, size=(7, 9), mode="bilinear")
    ),
    aten.sum.default: one(torch.sum),
    aten.sum.dim_IntList: along(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    aten.amax.default: along(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    aten.amin.default: along(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    aten.max.default: one(lambda x: x.max()),
    aten.min.default: one(lambda x: x.min()),
    aten.mean.default: one(torch.mean),
    aten.mean.dim: along(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    aten.var.dim: along(lambda x, axes, keep: x.var(axes, unbiased=False, keepdim=keep)),
    aten.std.dim: along(lambda x, axes, keep: x.std(axes, unbiased=False, keepdim=keep)),
    aten.var.correction: along(lambda x, axes, keep: x.var(axes, correction=0, keepdim=keep)),
    aten.std.correction: along(lambda x, axes, keep: x.std(axes, correction=0, keepdim=keep)),
    aten.linalg_vector_norm.default: along(
        lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep)
    ),
    aten.softmax.int: along(lambda x, axis, keep: x.softmax(axis), several=False),
    aten.log_softmax.int: along(lambda x, axis, keep: x.log_softmax(axis), several=False),
    aten.layer_norm.default: with_weights(lambda draw: nn.LayerNorm((5, 40)), 3, 5, 40),
    aten.rms_norm.default: with_weights(lambda draw: nn.RMSNorm(40), 3, 5, 40),
    aten.group_norm.default: with_weights(lambda draw: nn.GroupNorm(draw.choice([1, 2, 3]), 6), 2, 6, 5, 7),
    aten.instance_norm.default: with_weights(lambda draw: nn.InstanceNorm2d(6, affine=True), 2, 6, 5, 7),
    aten.matmul.default: two(lambda a, b: torch.matmul(a, a.transpose(0, -1)) if a.dim() < 3 else a @ a.mT),
    aten.bmm.default: one(lambda x: torch.bmm(x, x.transpose(1, 2)), rank=3),
    aten.mm.default: one(lambda x: torch.mm(x, x.t()), rank=2),
    aten.linear.default: with_weights(lambda draw: nn.Linear(50, 7), 3, 2, 50),
    aten.addmm.default: one(lambda x: torch.addmm(x, x, x.t() @ x, beta=0.5, alpha=2), rank=2),
    aten.baddbmm.default: one(lambda x: torch.baddbmm(x, x, x.transpose(1, 2) @ x), rank=3),
    aten.conv1d.default: conv(1),
    aten.conv1d.padding: conv(1, same=True),
    aten.conv2d.default: conv(2),
    aten.conv2d.padding: conv(2, same=True),
    aten.conv3d.default: conv(3),
    aten.conv3d.padding: conv(3, same=True),
    aten.conv_transpose1d.default: conv(1, turned=True),
    aten.conv_transpose2d.input: conv(2, turned=True),
    aten.conv_transpose3d.input: conv(3, turned=True),
}  # fmt: skip


def test_every_row_of_the_table_has_a_case() -> None:
    assert CASES.keys() == OPS.keys()


class All(nn.Module):
    """Many cases as one model, since tracing takes longer than all that is tested."""

    def __init__(self, parts: list[tuple[Any, int]]) -> None:
        super().__init__()
        self.counts = [count for _, count in parts]
        self.parts = nn.ModuleList(part if isinstance(part, nn.Module) else Of(part) for part, _ in parts)

    def forward(self, *inputs: Tensor) -> list[Any]:
        given = iter(inputs)
        return [
            part(*(next(given) for _ in range(count)))
            for part, count in zip(self.parts, self.counts, strict=True)
        ]


# What tracing or the normal form says by other ops.
REWRITTEN = frozenset({aten.hardtanh.default, aten.batch_norm.default, aten.conv2d.padding})


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("table", [ELEMENTWISE, {**MOVEMENT, **COPIES}, REDUCTIONS, CONTRACTIONS],
                         ids=["elementwise", "movement", "reductions", "contractions"])  # fmt: skip
def test_rows_compute_what_torch_does(table: dict[Any, Any], seed: int) -> None:
    drawn = [CASES[op](Draw(f"{op} {seed}")) for op in table]
    inputs = [x for _, given in drawn for x in given]
    graph = graph_of(All([(function, len(given)) for function, given in drawn]), inputs)
    values = by_torch(graph, inputs)
    met: set[Any] = set()
    found = groups_in(graph, inputs)
    for group, results in zip(found, computed(found, values), strict=True):
        met.update(node.target for node in group.nodes)
        for result, (exact, allowed) in zip(results, exactly(group, values), strict=True):
            assert float((result - exact).abs().max()) <= allowed, group.text
    assert table.keys() - met <= REWRITTEN


@pytest.mark.parametrize(
    "function", [torch.exp, torch.relu, torch.tanh, torch.sigmoid, F.hardswish, lambda x: x.clamp(-1, 1)]
)
def test_what_is_no_number_or_infinite_stays_so(function: Callable[[Tensor], Tensor]) -> None:
    inf = float("inf")
    x = torch.tensor([float("nan"), inf, -inf, 0.0, -0.0, 88.6, 89.0, -87.0, -104.0, 1e-30])
    graph = graph_of(function, [x])
    (group,) = groups_in(graph, [x])
    (((found,),), wanted) = computed([group], by_torch(graph, [x])), function(x)
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * 2).amax(1), lambda x: (x * 2).amin(1), lambda x: (x * 2).amax(0),
        lambda x: torch.relu(x).max() * 2, lambda x: x.min() * 2, lambda x: (x * 2).softmax(1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("columns", [5, 70])
def test_what_is_no_number_or_infinite_shows_in_extremes(
    function: Callable[[Tensor], Tensor], columns: int
) -> None:
    """NaN in the lanes, in the rest and in neither; a row of -inf has no other maximum."""
    x = torch.randn(4, columns, generator=torch.Generator().manual_seed(0))
    x[0, 1] = x[1, -1] = float("nan")
    x[2], x[3, 2] = -float("inf"), float("inf")
    for given in (x, x[2:].clone()):
        graph = graph_of(function, [given])
        groups = groups_in(graph, [given])
        *_, (found,) = computed(groups, by_torch(graph, [given]))
        torch.testing.assert_close(found, function(given), rtol=2e-6, atol=1e-37, equal_nan=True)


def test_another_dtype_and_an_empty_tensor_stay_with_torch() -> None:
    for x in (torch.randn(3, dtype=torch.float64), torch.randn(3, 0)):
        assert groups_in(graph_of(lambda x: torch.relu(x) * 2, [x]), [x]) == []
