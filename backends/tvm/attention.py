"""Attention of floats by row, where its recipe or its graph leaves it in float.

attention(q, k, v)   -->   one function, with the extremes that a range taken at run time is made of
"""

from dataclasses import replace

from torch.fx import Node

from qcompiler.backends.tvm.families.base import Layer, Places
from qcompiler.backends.tvm.kernels.float_attention import FloatAttention, float_attention, takes
from qcompiler.backends.tvm.ranges import ranged_behind
from qcompiler.ir import arguments


def attention_of_floats(places: Places, node: Node) -> Layer | None:
    """By token, [B, T, H D]; with a mask it stays with torch."""
    given = arguments(node)
    operands = [given[name] for name in ("q", "k", "v")]
    shapes = [places.shapes[value] for value in operands]
    by_token = len(shapes[0]) == 3 and shapes[0][2] // given["heads"] == shapes[2][2] // given["kv_heads"]
    by_token = by_token and node not in places.images
    if not by_token or given["mask"] or not all(places.known(x, before=node) for x in operands):
        return None
    planes = [places.plane_of(value, 0) for value in operands]
    (batch, queries, columns), (_, keys, _), _ = shapes
    layer = FloatAttention(
        q=planes[0], k=planes[1], v=planes[2], y=planes[0], batch=batch, heads=given["heads"],
        kv_heads=given["kv_heads"], queries=queries, keys=keys, width=columns // given["heads"],
        scale=given["scale"], causal=given["causal"],
    )  # fmt: skip
    if not takes(layer):
        return None  # before anything has a place
    names = [places.rows(value) for value in operands]
    q, k, v = (places.stores[name].plane for name in names)
    found = ranged_behind(places, node, layer.turns)
    whole = replace(layer, q=q, k=k, v=v, y=places.float_rows(node), ranged=bool(found))
    return Layer(
        kernel="float attention", description=whole,
        make=lambda name: float_attention(whole, places.isa, name), arguments=tuple(names),
        results=(node.name, *found),
    )  # fmt: skip
