"""Decoders in the forms of a target: attention over a cache as one op, sibling linears as one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils import _pytree as pytree

from qcompiler.ir import Graph, evaluate, format_text, trace
from qcompiler.models.decoder import Decoder, in_place
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.forms import forms
from qcompiler.passes.fuse import fuse
from qcompiler.passes.plan import make_plan
from qcompiler.passes.rules.attention import ATTENTION, JOINS
from qcompiler.passes.rules.rotary import ROTARY
from qcompiler.recipe import Recipe, find_recipe
from qcompiler.rewrite import Rule, run
from qcompiler.target import AttentionKernel, Target, find_target
from tests.models.test_decoder import small

CPU = find_target("cpu")
OPEN: dict[str, Any] = {"dynamic": {"tokens": (1,)}}  # a prompt or a step
FAMILIES: tuple[Literal["llama", "gpt2"], ...] = ("llama", "gpt2")


def call(module: Decoder, tokens: int, start: int, batch: int = 1, capacity: int = 16) -> tuple[Any, ...]:
    """Tokens behind a cache of random rows; rows behind them are zero."""
    cache = [
        tuple(torch.zeros(batch, *part.shape[1:2], capacity, part.shape[3]) for part in pair)
        for pair in module.empty_cache(batch)
    ]
    for part in pytree.tree_leaves(cache):
        part[:, :, :start].normal_()
    return torch.randint(0, 50, (batch, tokens)), torch.tensor(start), cache


def canonical(module: nn.Module, inputs: Any, **options: Any) -> Graph:
    return run(CANONICAL, trace(module, inputs, **options))


def formed(graph: Graph, recipe: str | Recipe = "w4a16", target: Target = CPU) -> Graph:
    return run(forms(find_recipe(recipe), target), graph)


def notes(graph: Graph, rule: str) -> list[tuple[str, str]]:
    return [(note.outcome, note.reason) for note in graph.notes if note.rule == rule]


@pytest.mark.parametrize("rule", [*ROTARY, *ATTENTION, *JOINS], ids=lambda rule: rule.name)
@pytest.mark.parametrize("seed", range(4))
def test_law(rule: Rule, seed: int) -> None:
    assert rule.check(Generator().manual_seed(seed)) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_decoder_becomes_one_attention_and_one_linear_for_each_family_of_siblings(
    family: Literal["llama", "gpt2"], tokens: int
) -> None:
    module = small(family)
    graph = canonical(module, call(module, tokens, 3), **({} if tokens == 1 else OPEN))
    text = format_text(formed(graph))
    assert text.count("qcompiler.cached_attention") == 2
    # Of a layer: queries, keys and values; output; gate and up, or the first of two; the second.
    assert text.count("aten.linear.default(") == 2 * 4 + 1
    assert not any(
        name in text for name in ("index_copy", "scaled_dot", "aten.transpose", "aten.cat", "aten.le")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forms_compute_the_same(family: Literal["llama", "gpt2"]) -> None:
    module = small(family)
    graph = canonical(module, call(module, 5, 3), **OPEN)
    other = formed(graph)
    for batch, (tokens, start) in itertools.product((1, 3), ((4, 0), (2, 9), (1, 15))):
        flat = pytree.tree_leaves(call(module, tokens, start, batch))
        for before, after in zip(evaluate(graph, flat), evaluate(other, flat), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_the_plan_names_what_stays_float_and_not_what_only_takes_apart() -> None:
    module = small("llama")
    graph, recipe = formed(canonical(module, call(module, 5, 3), **OPEN)), find_recipe("w4a16")
    plan = make_plan(graph, fuse(graph, CPU), {}, recipe, CPU)
    ops = {layer.op for layer in plan.layers if layer.precision == "float"}
    assert ops == {"embedding", "rms_norm", "cached_attention", "silu", "mul", "add"}


def test_static_integers_keep_their_linears_apart() -> None:
    module = small("llama")
    text = format_text(formed(canonical(module, call(module, 5, 0)), "int8"))
    assert text.count("aten.linear.default(") == 15
    assert text.count("qcompiler.cached_attention") == 2


def test_a_target_without_such_kernels_changes_nothing() -> None:
    module = small("llama")
    graph = canonical(module, call(module, 5, 0))
    plain = replace(CPU, attention=None, joins={}, rotary=False)
    assert format_text(formed(graph, target=plain)) == format_text(graph)


def test_siblings_of_which_an_override_names_one_stay_apart() -> None:
    module = small("llama")
    recipe = find_recipe("w4a16").overriding("layers.0.mlp.gate", group_size=64)
    graph = formed(canonical(module, call(module, 5, 0), **OPEN), recipe)
    text = format_text(graph)
    assert "layers_0_mlp_gate_weight" in text and "layers_1_mlp_gate_weight" not in text


@pytest.mark.parametrize(("shape", "linears"), [((2, 8), 2), ((2, 1, 8), 2), ((2, 7, 8), 3)])
def test_what_has_many_rows_for_certain_is_not_joined(shape: tuple[int, ...], linears: int) -> None:
    """The first size is the batch, which is open; the others are known."""
    graph = formed(canonical(Biased().eval(), torch.randn(shape)), "int8-dynamic")
    assert format_text(graph).count("aten.linear.default(") == linears


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 4), nn.Linear(8, 6, bias=False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.a(x), self.b(x), self.c(x.relu())


def test_siblings_with_and_without_bias_are_joined_and_cousins_are_not() -> None:
    module, x = Biased().eval(), torch.randn(3, 8)
    graph = formed(canonical(module, x), "int8-dynamic")
    assert format_text(graph).count("aten.linear.default(") == 2
    assert notes(graph, "siblings") == [("applied", "reads the same input as b/linear_1")]
    for before, after in zip(module(x), evaluate(graph, [x]), strict=True):
        torch.testing.assert_close(after, before)


class Masked(nn.Module):
    """The attention of a decoder with one thing changed."""

    def __init__(self, module: Decoder, change: str) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, tokens: Tensor, start: Tensor, cache: Any) -> Any:
        count = torch.arange(tokens.shape[1])
        positions = start + (2 * count if self.change == "gaps" else count)
        slots = torch.arange(cache[0][0].shape[2])
        if self.change == "reversed":
            slots = slots.flip(0)
        visible = slots < positions[:, None] if self.change == "strict" else slots <= positions[:, None]
        return self.module.compute(tokens, positions, [in_place(past, positions, visible) for past in cache])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("none", ""),
        ("gaps", "its positions are not consecutive"),
        ("reversed", "its mask does not compare positions with 0 to 16"),
        ("strict", None),
    ],
)
def test_another_mask_is_refused(change: str, reason: str | None) -> None:
    module = small("llama")
    graph = formed(canonical(Masked(module, change).eval(), call(module, 3, 2)))
    wanted = [] if reason is None else [("applied" if not reason else "refused", reason)] * 2
    assert notes(graph, "rotary-attention-over-cache") == wanted


def test_a_cache_beyond_the_rotary_tables_is_refused() -> None:
    module = small("llama")
    graph = formed(canonical(module, call(module, 3, 2, capacity=40)))
    expected = ("refused", "the cache holds 40 tokens, but its tables end at 32")
    assert notes(graph, "rotary-attention-over-cache") == [expected] * 2


def test_a_head_width_that_the_kernel_does_not_take_is_refused() -> None:
    module = small("llama")
    picky = replace(CPU, attention=AttentionKernel(name="Picky", rotary_multiple=32))
    graph = formed(canonical(module, call(module, 3, 2)), target=picky)
    expected = ("refused", "Picky wants a head width that 32 divides")
    assert notes(graph, "rotary-attention-over-cache") == [expected] * 2


def test_a_result_that_is_read_before_the_root_keeps_the_rule_away() -> None:
    module = small("gpt2")
    graph = canonical(module, call(module, 3, 2))
    keys = next(node for node in graph.fx.nodes if "index_copy" in str(node.target))
    attention = next(node for node in graph.fx.nodes if "scaled_dot" in str(node.target))
    with graph.fx.inserting_before(attention):
        early = graph.fx.call_function(torch.ops.aten.neg.default, (keys,))
    early.meta["val"] = keys.meta["val"]
    graph.fx.output_node().args = ([*graph.fx.output_node().args[0], early],)  # type: ignore[misc]
    assert ("refused", "'neg_default' reads a result of it earlier") in notes(
        formed(graph), "attention-over-cache"
    )
