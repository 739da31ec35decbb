"""Attention of codes, with a mask or without."""

from dataclasses import replace

import numpy as np
import torch
from torch.fx import Node

from qcompiler.backends.reference import coded, output_of
from qcompiler.backends.reference.attention import factors
from qcompiler.backends.tvm.families.base import Layer, Places, by_rows, layer, zero_point
from qcompiler.backends.tvm.kernels import attention as heads
from qcompiler.ir import arguments
from qcompiler.passes.partition import Region

aten = torch.ops.aten


def attention(places: Places, region: Region) -> Layer | None:
    given = arguments(region.anchor)
    (batch, queries, width), (_, keys, _), (*_, of_values) = (
        places.shapes[given[name]] for name in ("q", "k", "v")
    )
    if not by_rows(places, region) or of_values * given["heads"] != width * given["kv_heads"]:
        return None  # values have another width than keys
    mask, strides = None, None
    if given["mask"] is not None:
        mask, strides = seen_through(given["mask"], places)
    q, k, v = map(places.plane, region.operands)
    zeros = [zero_point(places, node) for node in (region.operands[0], region.operands[2], region.result)]
    each = [heads.Operand(plane=places.stores[name].plane) for name in (q, k, v)]
    whole = heads.Attention(
        q=each[0], k=each[1], v=each[2], y=each[0], batch=batch, heads=given["heads"],
        kv_heads=given["kv_heads"], queries=queries, keys=keys, width=width // given["heads"],
        mask=strides, causal=given["causal"],
    )  # fmt: skip
    if not heads.takes(whole, places.isa):
        return None  # before the result has a place: the reference returns it elsewhere
    whole = replace(whole, y=heads.Operand(plane=places.result(region)))
    of_q, of_k, of_v = (
        coded(x, lambda node: places.tensor(node) if node.op == "get_attr" else None) for x in region.operands
    )
    steps = factors(of_q, of_k, of_v, output_of(region, places.graph), given["scale"])
    added = () if mask is None else (places.mask(mask),)
    return layer(
        "attention", whole, lambda name: heads.attention(whole, places.isa, name), (q, k, v, *added), region,
        numbers=torch.stack(steps).numpy(), zeros=np.array(zeros, np.int32),
    )  # fmt: skip


def seen_through(mask: Node, places: Places) -> tuple[Node, tuple[int, int, int, int]]:
    """What a mask is a repetition of, and its strides over [B, H, T, S]: 0 where it is repeated."""
    source = mask.args[0] if mask.target is aten.expand.default else mask
    assert isinstance(source, Node)
    shape = places.shapes[source]
    found, size = [], 1
    for extent in reversed(shape):
        found.append(0 if extent == 1 else size)
        size *= extent
    b, h, t, s = reversed([*found, 0, 0, 0, 0][:4])
    return source, (b, h, t, s)
