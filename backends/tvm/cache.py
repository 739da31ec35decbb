"""Attention over a cache: the cache lies in memory of ours while a token is attended, and may stay there.

cached_attention(qkv, past, ..)  -->  enter(past), one kernel that writes into it, leave(cache)

A memory that keeps the cache runs the same steps without those that enter and leave.
"""

import operator

from torch.fx import Node

from qcompiler.backends.tvm.families.base import Layer, Places
from qcompiler.backends.tvm.fewbits import rounded_behind
from qcompiler.backends.tvm.kernels.cached_attention import CachedAttention, cached_attention
from qcompiler.ir import arguments

MULTIPLE = 16  # of the width of a head


def attention_over_cache(places: Places, node: Node) -> Layer | None:
    given, shapes = arguments(node), places.shapes
    (batch, kv_heads, capacity, width), rows = shapes[given["past_keys"]], given["qkv"]
    tables = [given[name] for name in ("cos", "sin") if given[name] is not None]
    constant = all(table.op == "get_attr" for table in tables)
    attended = next((user for user in node.users if user.args[1] == 0), None)
    if width % MULTIPLE or not constant or attended is None or not places.known(rows, before=node):
        return None
    x, y = places.rows(rows), places.float_rows(attended)
    block, rounded = rounded_behind(places, attended, y)
    layer = CachedAttention(
        x=places.stores[x].plane, y=y, block=block, heads=given["heads"], kv_heads=kv_heads,
        width=width, capacity=capacity, batch=batch, rotary=bool(tables),
        scale=width**-0.5 if given["scale"] is None else given["scale"],
    )  # fmt: skip
    constants = {
        f"{table.target}.{capacity}": places.tensor(table)[:capacity].float().contiguous().numpy()
        for table in tables
    }
    last = capacity - shapes[rows][-2]  # behind it, tokens of a call have no room
    scratch = f"{node.name}.scratch"
    places.hold(scratch, layer.scratch, "float32")
    caches = [
        places.cached(given[name], layer.cache, found_at(node, turn))
        for turn, name in ((1, "past_keys"), (2, "past_values"))
    ]
    return Layer(
        kernel="cached attention", description=layer,
        make=lambda name: cached_attention(layer, places.isa, name),
        arguments=(x, places.first(given["positions"], layer.position, last), *constants, scratch, *caches),
        results=(attended.name, *rounded), constants=constants,
    )  # fmt: skip


def found_at(node: Node, turn: int) -> list[Node]:
    """The values that stand for one of an op's results."""
    return [user for user in node.users if user.target is operator.getitem and user.args[1] == turn]
