"""Attention in the form that engines have one kernel for: heads side by side, without transposes.

    by token(attention(by head(q), by head(k), by head(v)))  -->  attention(q, k, v)       exact

Where a value by head comes from is found by running the data movement behind it once, on indices: whatever
views, transposes, splits and repetitions stand there, in any order, the law is their result.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node, map_arg

from qcompiler.ir import Draft, Graph, arguments, spec, value
from qcompiler.ir.graph import operator_of
from qcompiler.rewrite import Trait, has

aten = torch.ops.aten
qc = torch.ops.qcompiler

PARTS = (aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
# Indices of a value with more elements than this are not worth their memory.
LARGEST = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Heads:
    """A value [B, H, S, D] as columns of a value [B, S, W]: head h is at offset + (h // repeats) D."""

    source: Node
    offset: int
    heads: int  # in the source
    repeats: int
    width: int  # D

    @property
    def columns(self) -> int:
        return self.heads * self.width


def attend_by_token(graph: Graph) -> Graph:
    """Every attention as one op, by token where the values around it are sorted by head for it alone."""
    draft = Draft(graph)
    for node in draft.nodes:
        if is_attention(node):
            use_attention(draft, node)
    return draft.finish()


def is_attention(node: Node) -> bool:
    """An attention that the one kernel computes as torch does: by head, without dropout.

    Where there are fewer queries than keys, the last query sees all of them here, and in torch the first sees
    one: a causal attention must have as many of both.
    """
    if node.target is not aten.scaled_dot_product_attention.default:
        return False
    found, given = spec(node), arguments(node)
    queries, keys = (spec(given[name]) for name in ("query", "key"))
    if found is None or len(found.shape) != 4 or queries is None or keys is None or given["dropout_p"]:
        return False
    return not given["is_causal"] or str(queries.shape[2]) == str(keys.shape[2])


def use_attention(draft: Draft, node: Node) -> None:
    """Replace one attention, with the data movement around it where that only sorts values by head."""
    given = arguments(node)
    found, result = operands(node), merged(node)
    if found is None or result is None:
        inputs, result = tuple(given[name] for name in ("query", "key", "value")), node
        heads, kv_heads = (spec(x).shape[1] for x in inputs[:2])  # type: ignore[union-attr]
    else:
        inputs = tuple(columns(draft, heads, node) for heads in found)
        heads, kv_heads = found[0].heads, found[1].heads
    depth = spec(given["query"]).shape[3]  # type: ignore[union-attr]
    scale = depth**-0.5 if given["scale"] is None else given["scale"]
    mask = given["attn_mask"] and spread(draft, given["attn_mask"], node)
    attended = draft.call(
        qc.attention.default, *inputs, mask, heads, kv_heads, scale, given["is_causal"],
        before=node, origin=node, name=f"{node.name}_in_one",
    )  # fmt: skip
    draft.replace(result, attended)


def operands(attention: Node) -> tuple[Heads, Heads, Heads] | None:
    """Where queries, keys and values come from, if each comes from a value by token."""
    given = arguments(attention)
    found = [heads_of(given[name]) for name in ("query", "key", "value")]
    if any(heads is None for heads in found):
        return None
    q, k, v = (heads for heads in found if heads is not None)
    repeats = q.heads // k.heads if k.heads else 0
    fits = q.repeats == 1 and k.heads == v.heads and k.repeats == v.repeats
    # Repeated heads, or fewer of them, are the kernel's own business; both at once are not.
    shared = (given["enable_gqa"] and k.repeats == 1) or k.repeats == repeats
    return (q, k, v) if fits and shared and q.heads == k.heads * repeats else None


def columns(draft: Draft, heads: Heads, before: Node) -> Node:
    """The columns of the source that hold these heads."""
    found = spec(heads.source)
    assert found is not None
    if found.shape[-1] == heads.columns:
        return heads.source
    end = heads.offset + heads.columns
    return draft.call(aten.slice.Tensor, heads.source, 2, heads.offset, end, before=before, origin=before)


def spread(draft: Draft, mask: Node, attention: Node) -> Node:
    """The mask with a row for every query and a column for every key, which the kernel insists on."""
    found, given = spec(mask), arguments(attention)
    assert found is not None
    wanted = [spec(given[name]).shape[2] for name in ("query", "key")]  # type: ignore[union-attr]
    if len(found.shape) >= 2 and list(map(str, found.shape[-2:])) == list(map(str, wanted)):
        return mask
    sizes = [
        size if isinstance(size, int) else draft.call(aten.sym_size.int, given[name], 2, before=attention)
        for size, name in zip(wanted, ("query", "key"), strict=True)
    ]
    leading = [-1] * max(0, len(found.shape) - 2)
    return draft.call(aten.expand.default, mask, [*leading, *sizes], before=attention)


# ---------------------------------------------------------------- data movement, run on indices


def is_move(node: Node) -> bool:
    return has(node, Trait.MOVES_DATA) or node.target in PARTS or node.target is operator.getitem


def heads_of(by_head: Node) -> Heads | None:
    """[B, H, S, D] as columns of the nearest value by token that it was made of, or None."""
    chain: list[Node] = []
    node: Any = by_head
    while is_move(node) and isinstance(node.args[0], Node):
        chain.insert(0, node)
        node = node.args[0]
        found = columns_of(node, chain, by_head)
        if found is not None:
            return found
    return None


def columns_of(source: Node, chain: Sequence[Node], by_head: Node) -> Heads | None:
    """[B, H, S, D] as columns of a value [B, S, W] that `chain` sorts by head, or None."""
    start, target = sizes_of(source), sizes_of(by_head)
    if start is None or target is None or len(start) != 3 or len(target) != 4:
        return None
    indices = moved(chain, start)
    if indices is None:
        return None
    (batch, tokens, width), (_, heads, _, depth) = start, target
    offset = int(indices[0, 0, 0, 0])
    distinct = len(set(indices[0, :, 0, 0].tolist()))
    repeats = heads // distinct
    column = offset + torch.arange(heads)[:, None] // repeats * depth + torch.arange(depth)
    row = torch.arange(batch)[:, None] * tokens + torch.arange(tokens)
    if offset + distinct * depth > width or indices.shape != (batch, heads, tokens, depth):
        return None
    expected = row[:, None, :, None] * width + column[None, :, None, :]
    if not torch.equal(indices, expected):
        return None
    return Heads(source=source, offset=offset, heads=distinct, repeats=repeats, width=depth)


def merged(by_head: Node) -> Node | None:
    """The value [B, S, H D] that single-reader data movement makes of a value [B, H, S, D], or None."""
    start = sizes_of(by_head)
    if start is None:
        return None
    batch, heads, tokens, depth = start
    expected = torch.arange(batch * heads * tokens * depth).reshape(start).transpose(1, 2).flatten(2)
    chain: list[Node] = []
    node = by_head
    while len(node.users) == 1:
        (reader,) = node.users
        if not is_move(reader) or reader.args[0] is not node:
            return None
        chain.append(reader)
        node = reader
        indices = moved(chain, start) if sizes_of(node) == list(expected.shape) else None
        if indices is not None and torch.equal(indices, expected):
            return node
    return None


def moved(chain: Sequence[Node], start: Sequence[int]) -> Tensor | None:
    """Run data movement on the positions of the elements of a tensor of shape `start`."""
    found: Any = torch.arange(torch.Size(start).numel()).reshape(list(start))
    if found.numel() > LARGEST:
        return None
    for node in chain:
        args, kwargs = map_arg((node.args[1:], node.kwargs), size_of)
        found = operator_of(node)(found, *args, **kwargs)
    return found if isinstance(found, Tensor) else None


def sizes_of(node: Node) -> list[int] | None:
    """A tensor's shape with every symbolic size at the value it was traced with."""
    found = spec(node)
    return (
        None if found is None else [size if isinstance(size, int) else size.node.hint for size in found.shape]
    )


def size_of(node: Node) -> Any:
    """A symbolic number that data movement reads, at the value it was traced with."""
    found = value(node)
    return found.node.hint if isinstance(found, torch.SymInt) else found
