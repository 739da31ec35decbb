"""Which layers compute on integers, and the reason that is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from qcompiler.errors import RecipeError
from qcompiler.ir import trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.fuse import fuse
from qcompiler.passes.placement import Choice, place
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU

IMAGE, TOKENS = (2, 4, 8, 8), (2, 5, 8)


class Function(nn.Module):
    """A function of an input and of layers, which it names `layers.0`, `layers.1`, ..."""

    def __init__(self, function: Any, *layers: nn.Module, **tensors: Tensor) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.layers, **dict(self.named_buffers(recurse=False)))


def choices(model: nn.Module, *inputs: Tensor, recipe: Any = "int8", **floats: str) -> dict[str, Choice]:
    graph = run(CANONICAL, trace(model.eval(), inputs))
    groups = fuse(graph, ONNX_RUNTIME_CPU)
    placed = place(graph, groups, find_recipe(recipe), ONNX_RUNTIME_CPU, floats)
    return {name: choice for name, choice in zip(numbered(placed), placed.values(), strict=True)}


def numbered(anchors: Iterable[Node]) -> Iterator[str]:
    """conv2d, conv2d_1, add, ...: names of ops in execution order, whatever else the graph holds."""
    seen: Counter[str] = Counter()
    for anchor in anchors:
        op = str(anchor.target).split(".")[1]
        yield f"{op}_{seen[op]}" if seen[op] else op
        seen[op] += 1


def modes(found: dict[str, Choice]) -> dict[str, str]:
    """Node -> "codes" (integers in and out), "integer" (integers in, float out), or its mode."""
    return {
        name: "codes" if choice.output_codes else "integer" if choice.mode == "static" else choice.mode
        for name, choice in found.items()
    }


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **options)


# ---------------------------------------------------------------- residuals


def test_the_residual_add_of_a_cnn_is_integer() -> None:
    found = choices(Function(lambda x, a, b: (x + b(a(x).relu())).relu(), conv(), conv()), torch.randn(IMAGE))
    assert modes(found) == {"conv2d": "codes", "conv2d_1": "codes", "add": "codes"}
    assert found["add"].why == "its operands are codes already"


def prenorm(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    y: Tensor = x + down(F.gelu(up(norm(x))))
    return y


def postnorm(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    first = norm(x)
    y: Tensor = norm(first + down(F.gelu(up(first))))
    return y


@pytest.mark.parametrize("block", [prenorm, postnorm])
def test_the_residual_stream_of_a_transformer_stays_float(block: Any) -> None:
    model = Function(block, nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8))
    found = choices(model, torch.randn(TOKENS))
    assert modes(found) == {"linear": "integer", "linear_1": "integer", "add": "float"}
    assert found["add"].why.startswith("its operand ")
    assert found["add"].why.endswith("is float; quantizing it only for this op does not pay")


def test_what_a_float_kernel_returns_is_a_stream_that_stays_float() -> None:
    def block(x: Tensor, a: nn.Module) -> Tensor:
        stream = x.exp() + x.sin()
        y: Tensor = stream + a(stream)
        return y

    found = modes(choices(Function(block, conv()), torch.randn(IMAGE)))
    assert found == {"add": "float", "conv2d": "codes", "add_1": "float"}


def test_squeeze_and_excite_multiplies_codes_by_codes() -> None:
    def block(x: Tensor, first: nn.Module, down: nn.Module, up: nn.Module) -> Tensor:
        y = first(x)
        gate: Tensor = y * torch.sigmoid(up(down(F.adaptive_avg_pool2d(y, 1)).relu()))
        return gate

    found = choices(Function(block, conv(), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)), torch.randn(IMAGE))
    assert len(found) == 6
    assert set(modes(found).values()) == {"codes"}


def test_hardswish_between_convolutions_is_a_float_island() -> None:
    model = Function(lambda x, a, b: b(F.hardswish(a(x))), conv(), conv())
    assert modes(choices(model, torch.randn(IMAGE))) == {"conv2d": "codes", "conv2d_1": "codes"}


# ---------------------------------------------------------------- the output of a linear


def test_a_linear_returns_codes_if_all_its_readers_take_codes_or_it_absorbs_a_clamp() -> None:
    def rivals(x: Tensor, *layers: nn.Module) -> list[Tensor]:
        first, last = layers[:4], layers[4:]
        a, b, c, d = (layer(x) for layer in first)
        return [f(y) for f, y in zip(last, (a, b.relu(), F.gelu(c), d.relu()), strict=True)] + [
            d.relu().exp()
        ]

    found = choices(Function(rivals, *(nn.Linear(8, 8) for _ in range(8))), torch.randn(TOKENS))
    assert list(modes(found).values()) == ["codes", "codes", "integer", "codes"] + ["integer"] * 4
    ends = [choice.why.endswith("all readers take codes") for choice in found.values()]
    assert ends == [True, True] + [False] * 6
    assert list(found.values())[3].why.endswith("it absorbs a clamp")


# ---------------------------------------------------------------- ops that carry codes


def carried(y: Tensor) -> list[Tensor]:
    return [
        torch.cat([y, y.sigmoid()], 1), F.max_pool2d(y, 2), F.avg_pool2d(y, 2), F.adaptive_avg_pool2d(y, 1),
        y.flatten(1), y.transpose(1, 2), y.permute(0, 2, 3, 1), y[:, :2], F.pixel_shuffle(y, 2),
        F.leaky_relu(y, 0.1), y + y, y * y.sigmoid().sigmoid(),
    ]  # fmt: skip


@pytest.mark.parametrize("producer", ["codes", "float"])
def test_what_does_not_start_carries_codes_and_leaves_floats_alone(producer: str) -> None:
    layer = conv() if producer == "codes" else nn.Softmax(1)
    found = modes(choices(Function(lambda x, f: carried(f(x)), layer), torch.randn(IMAGE)))
    assert len(found) >= 13
    assert set(found.values()) == {producer}


def test_an_add_that_no_integer_kernel_computes_stays_float() -> None:
    def sums(x: Tensor, a: nn.Module) -> list[Tensor]:
        y = a(x)
        return [y + 1, torch.add(y, x, alpha=2), y + y.exp()]

    found = choices(Function(sums, conv()), torch.randn(IMAGE))
    number, operand = (choice for name, choice in found.items() if name.startswith("add"))
    assert (number.mode, operand.mode) == ("float", "float")
    assert number.why == "it has no tensor operands that could be codes"
    assert operand.why.endswith("is float; quantizing it only for this op does not pay")


def test_a_constant_becomes_codes_beside_codes_but_starts_nothing() -> None:
    table = torch.randn(1, 4, 8, 8)
    beside = Function(lambda x, a, table: a(x).relu() + table, conv(), table=table)
    alone = Function(lambda x, a, table: x.exp() + table, conv(), table=table)
    assert modes(choices(beside, torch.randn(IMAGE)))["add"] == "codes"
    assert set(modes(choices(alone, torch.randn(IMAGE))).values()) == {"float"}


def test_a_class_token_keeps_the_concat_and_what_follows_in_float() -> None:
    def tokens(x: Tensor, patches: nn.Module, head: nn.Module, token: Tensor, where: Tensor) -> Tensor:
        y = patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([token.expand(x.shape[0], -1, -1), y], 1) + where
        result: Tensor = head(F.layer_norm(y, (4,)))
        return result

    model = Function(
        tokens, nn.Conv2d(4, 4, 3, 4), nn.Linear(4, 3), token=torch.randn(1, 1, 4), where=torch.randn(1, 5, 4)
    )  # patches that do not meet stay a convolution, which returns codes
    found = choices(model, torch.randn(IMAGE))
    expand = next(choice for name, choice in found.items() if name.startswith("expand"))
    assert expand.why == "it has no tensor operands that could be codes"
    assert modes(found)["conv2d"] == "codes" and modes(found)["linear"] == "integer"
    assert {m for name, m in modes(found).items() if name.startswith(("cat", "add", "expand"))} == {"float"}


# ---------------------------------------------------------------- what keeps a layer in float


@pytest.mark.parametrize(
    ("function", "shapes", "why"),
    [
        (F.linear, [(2, 8), (3, 8)], "its weight is computed at run time"),
        (lambda x, b: F.linear(x, torch.ones(3, 8), b), [(2, 8), (3,)], "its bias is computed at run time"),
        (lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3)), [(3, 8, 8)], "its input has no batch dimension"),
    ],
    ids=["weight", "bias", "no batch"],
)
def test_a_layer_without_an_integer_kernel_stays_float(function: Any, shapes: Any, why: str) -> None:
    (choice,) = choices(Function(function), *(torch.randn(shape) for shape in shapes)).values()
    assert (choice.mode, choice.why) == ("float", why)


def test_what_the_caller_keeps_in_float_takes_its_followers_with_it() -> None:
    model = Function(lambda x, a, b: (x + b(a(x).relu())).relu(), conv(), conv())
    found = choices(model, torch.randn(IMAGE), conv2d_1="slower than float")
    assert modes(found) == {"conv2d": "codes", "conv2d_1": "float", "add": "float"}
    assert found["conv2d_1"].why == "slower than float"


# ---------------------------------------------------------------- recipes

CHAIN = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))


def test_an_override_finds_a_layer_by_module_node_or_label() -> None:
    for pattern, floats in {
        "0": {"linear"}, "linear_1": {"linear_1"}, "4/linear_2": {"linear_2"}, "[02]": {"linear", "linear_1"},
    }.items():  # fmt: skip
        recipe = {"overrides": [{"pattern": pattern, "weights": None}]}
        found = choices(CHAIN, torch.randn(2, 64), recipe=recipe)
        assert {name for name, choice in found.items() if choice.mode == "float"} == floats
        assert {found[name].why for name in floats} == {"the recipe keeps this layer in float"}


def test_an_override_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    recipe = {"overrides": [{"pattern": "encoder.*", "weights": None}]}
    with pytest.raises(RecipeError, match=r"'encoder\.\*' matches no layer.*linear_1"):
        choices(CHAIN, torch.randn(2, 64), recipe=recipe)


@pytest.mark.parametrize(
    ("recipe", "mode"), [("int8-dynamic", "dynamic"), ("w8a16", "weight-only"), ("w4a16", "weight-only")]
)
def test_recipes_without_calibrated_activations_quantize_linears_only(recipe: str, mode: str) -> None:
    def mixed(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        y: Tensor = c((a(x) + b(x)).flatten(1))
        return y

    found = choices(Function(mixed, conv(), conv(), nn.Linear(256, 4)), torch.randn(IMAGE), recipe=recipe)
    assert modes(found).pop("linear") == mode
    assert {choice.mode for name, choice in found.items() if name != "linear"} == {"float"}
    assert found["conv2d"].why == f"recipe '{recipe}' quantizes linears only"
    assert not any(choice.output_codes for choice in found.values())


@pytest.mark.parametrize(
    ("recipe", "width", "why"),
    [
        ("w4a16", 48, "its 48 inputs are no whole number of groups of 32; group_size 16 would fit it"),
        ("w4a16", 24, "its 24 inputs are no whole number of groups of 32"),
        (
            {"base": "w8a16", "group_size": 64}, 96,
            "its 96 inputs are no whole number of groups of 64; group_size 32 would fit it",
        ),
        (
            {"base": "w8a16", "group_size": 64, "weights": "target"}, 24,
            "its 24 inputs are no whole number of groups of 64; group_size 0 would fit it",
        ),
    ],
)  # fmt: skip
def test_a_linear_that_the_groups_do_not_fit_stays_float(recipe: Any, width: int, why: str) -> None:
    found = choices(
        nn.Sequential(nn.Linear(64, width), nn.Linear(width, 4)), torch.randn(2, 64), recipe=recipe
    )
    assert modes(found) == {"linear": "weight-only", "linear_1": "float"}
    assert found["linear_1"].why == why


def test_one_layer_may_be_dynamic_among_static_ones() -> None:
    recipe = {"overrides": [{"pattern": "2", "dynamic": True}]}
    found = choices(CHAIN, torch.randn(2, 64), recipe=recipe)
    assert [choice.mode for choice in found.values()] == ["static", "dynamic", "static"]
