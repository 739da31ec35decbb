"""Attention over a cache of fixed capacity, written out, becomes one op.

visible    = slots <= positions                                    positions = start + (0, 1, 2, ...)
q, k, v    = by head(x), by head(k), by head(v)                    q and k turned by rotary tables, or not
keys       = index_copy(past keys, positions, k)                   values likewise
attention(q, keys, values, visible), keys, values   -->   cached_attention(cat(x, k, v), past, positions)
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.fx import Node

from qcompiler.ir import Draft, arguments, spec
from qcompiler.ir.graph import operator_of
from qcompiler.passes.rules.conditions import both
from qcompiler.passes.rules.sample import choose, normal, several
from qcompiler.rewrite import EXACT, Match, Rule, reals
from qcompiler.rewrite.rule import Where
from qcompiler.target import AttentionKernel

aten = torch.ops.aten
qc = torch.ops.qcompiler
Ints = list[int]
Scale = float | None


def by_head(x: Any, shape: Ints) -> Any:
    """[B, T, heads * D] -> [B, heads, T, D]"""
    return aten.transpose.int(aten.reshape.default(x, shape), 1, 2)


def attended(
    q: Any, k: Any, v: Any, past_keys: Any, past_values: Any, positions: Any, slots: Any,
    grouped: bool, scale: Scale, shape: Ints,
) -> Any:  # fmt: skip
    visible = aten.le.Tensor(slots, aten.unsqueeze.default(positions, 1))
    keys = aten.index_copy.default(past_keys, 2, positions, k)
    values = aten.index_copy.default(past_values, 2, positions, v)
    y = aten.scaled_dot_product_attention.default(
        q, keys, values, visible, 0.0, False, scale=scale, enable_gqa=grouped
    )
    return aten.reshape.default(aten.transpose.int(y, 1, 2), shape), keys, values


def rotary_parts(
    x: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor, positions: Tensor, slots: Tensor,
    x_shape: Ints, k_shape: Ints, v_shape: Ints, shape: Ints, grouped: bool, scale: Scale,
    cos: Tensor, sin: Tensor, heads: int, kv_heads: int,
) -> Any:  # fmt: skip
    rows = aten.index.Tensor(cos, [positions]), aten.index.Tensor(sin, [positions])
    q = qc.rotary.default(by_head(x, x_shape), *rows, heads)
    keys = qc.rotary.default(by_head(k, k_shape), *rows, kv_heads)
    values = by_head(v, v_shape)
    return attended(q, keys, values, past_keys, past_values, positions, slots, grouped, scale, shape)


def rotary_whole(
    x: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor, positions: Tensor, slots: Tensor,
    x_shape: Ints, k_shape: Ints, v_shape: Ints, shape: Ints, grouped: bool, scale: Scale,
    cos: Tensor, sin: Tensor, heads: int, kv_heads: int,
) -> Any:  # fmt: skip
    return whole(x, k, v, past_keys, past_values, positions, cos, sin, scale)


def plain_parts(
    x: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor, positions: Tensor, slots: Tensor,
    x_shape: Ints, k_shape: Ints, v_shape: Ints, shape: Ints, grouped: bool, scale: Scale,
) -> Any:  # fmt: skip
    q, keys, values = by_head(x, x_shape), by_head(k, k_shape), by_head(v, v_shape)
    return attended(q, keys, values, past_keys, past_values, positions, slots, grouped, scale, shape)


def plain_whole(
    x: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor, positions: Tensor, slots: Tensor,
    x_shape: Ints, k_shape: Ints, v_shape: Ints, shape: Ints, grouped: bool, scale: Scale,
) -> Any:  # fmt: skip
    return whole(x, k, v, past_keys, past_values, positions, None, None, scale)


def whole(
    x: Any, k: Any, v: Any, past_keys: Any, past_values: Any, positions: Any, cos: Any, sin: Any, scale: Scale
) -> Any:
    heads = x.shape[-1] // past_keys.shape[3]
    qkv = aten.cat.default([x, k, v], -1)
    made = qc.cached_attention.default(qkv, past_keys, past_values, positions, cos, sin, heads, scale)
    return made[0], made[1], made[2]


def joined_parts(x: Tensor, sizes: Ints) -> Any:
    parts = aten.split_with_sizes.default(x, sizes, -1)
    return aten.cat.default([parts[0], parts[1], parts[2]], -1)


def joined(x: Tensor, sizes: Ints) -> Any:
    return x


# ---------------------------------------------------------------- where


def keeps_order(match: Match, draft: Draft) -> str | None:
    """The reshapes must split and join heads, and nothing else."""
    width = sizes(match.bindings["past_keys"])[3]
    for name in ("x", "k", "v"):
        given = match.bindings[name]
        (split,) = (node for node in match.covered if is_reshape(node) and node.args[0] is given)
        shape = sizes(split)
        if len(sizes(given)) != 3 or shape[:2] != sizes(given)[:2] or len(shape) != 4 or shape[3] != width:
            return f"'{name}' of shape {sizes(given)} is not split into heads by {shape}"
    if sizes(match.root) != sizes(match.bindings["x"]):
        return f"its heads are joined as {sizes(match.root)}"
    return None


def is_reshape(node: Node) -> bool:
    return operator_of(node) is aten.reshape.default


def sizes(node: Node) -> list[Any]:
    """A shape that can be compared: symbolic sizes by name."""
    found = spec(node)
    return [size if isinstance(size, int) else str(size) for size in found.shape] if found else []


def counts_up(match: Match, draft: Draft) -> str | None:
    """A token sees the rows up to its own only if rows and positions are counted."""
    capacity = sizes(match.bindings["past_keys"])[2]
    if counted(match.bindings["slots"], draft) != capacity:
        return f"its mask does not compare positions with 0 to {capacity}"
    positions = match.bindings["positions"]
    parts = positions.args[:2] if positions.target is aten.add.Tensor else (positions,)
    offsets = [part for part in parts if counted(part, draft) is None]
    if len(offsets) != len(parts) - 1 or any(isinstance(node, Node) and sizes(node) for node in offsets):
        return "its positions are not consecutive"
    return None


def counted(node: Any, draft: Draft) -> Any:
    """n where a value is 0, 1, ..., n - 1 (a number or the name of one), else None."""
    tensor = draft.tensor(node)
    if tensor is not None and tensor.dim() == 1:
        return len(tensor) if torch.equal(tensor, torch.arange(len(tensor))) else None
    if not isinstance(node, Node) or "aten.arange" not in str(node.target):
        return None
    given = arguments(node)
    return sizes(node)[0] if given.get("start", 0) == 0 and given.get("step", 1) == 1 else None


def has_tables(match: Match, draft: Draft) -> str | None:
    """The rotary tables must have a row for every position that the cache can hold."""
    capacity, rows = sizes(match.bindings["past_keys"])[2], sizes(match.bindings["cos"])[0]
    enough = isinstance(capacity, int) and isinstance(rows, int) and capacity <= rows
    return None if enough else f"the cache holds {capacity} tokens, but its tables end at {rows}"


def has_three_parts(match: Match, draft: Draft) -> str | None:
    count = len(match.bindings["sizes"])
    return None if count == 3 else f"it joins 3 of {count} parts"


def fits(kernel: AttentionKernel) -> Where:
    """The head width must be one that the target's kernel takes."""

    def where(match: Match, draft: Draft) -> str | None:
        width = sizes(match.bindings["past_keys"])[3]
        step = kernel.rotary_multiple if "cos" in match.bindings else kernel.multiple
        return None if width % step == 0 else f"{kernel.name} wants a head width that {step} divides"

    return where


# ---------------------------------------------------------------- domain


def plain_sample(g: Generator) -> tuple[Any, ...]:
    batch, tokens, capacity, width = choose(g, 1, 2), choose(g, 1, 3), 8, 4
    heads, kv_heads = choose(g, (4, 2), (2, 2), (3, 1))
    start = choose(g, 0, 4)
    k, v = (normal(g, batch, tokens, kv_heads * width) for _ in range(2))
    past = (normal(g, batch, kv_heads, capacity, width) for _ in range(2))
    split, shape = [batch, tokens, -1, width], [batch, tokens, heads * width]
    return (
        normal(g, batch, tokens, heads * width), k, v, *past, start + torch.arange(tokens),
        torch.arange(capacity), split, split, split, shape, heads != kv_heads, choose(g, None, 0.7),
    )  # fmt: skip


def rotary_sample(g: Generator) -> tuple[Any, ...]:
    drawn = plain_sample(g)
    heads, kv_heads = drawn[0].shape[2] // 4, drawn[1].shape[2] // 4
    return (*drawn, normal(g, 10, 2), normal(g, 10, 2), heads, kv_heads)


# What is computed of positions alone, once for all layers.
OF_POSITIONS = (aten.le.Tensor, aten.unsqueeze.default, aten.index.Tensor)


def attention_rule(
    name: str, before: Callable[..., Any], after: Callable[..., Any], domain: Any, *where: Where
) -> Rule:
    # The sides differ in no operation, but products of other layout may be summed in another order.
    return Rule(
        name=name, before=before, after=after, domain=several(domain), law=reals(64), shared=OF_POSITIONS,
        where=both(keeps_order, counts_up, *where),
    )  # fmt: skip


ATTENTION = (
    attention_rule("rotary-attention-over-cache", rotary_parts, rotary_whole, rotary_sample, has_tables),
    attention_rule("attention-over-cache", plain_parts, plain_whole, plain_sample),
)

JOINS = (
    Rule(
        name="join-of-split", before=joined_parts, after=joined, law=EXACT, where=has_three_parts,
        domain=several(lambda g: (normal(g, 2, 3, 12), choose(g, [4, 4, 4], [6, 3, 3]))),
    ),
)  # fmt: skip


def attention_for(kernel: AttentionKernel) -> tuple[Rule, ...]:
    """The rules, where the kernel of a target takes what they make."""
    return tuple(replace(rule, where=both(rule.where, fits(kernel))) for rule in ATTENTION)
