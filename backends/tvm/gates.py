"""Functions of floats by row, and codes of them: silu(a) b, of values or columns side by side, and GELU."""

import operator
from dataclasses import replace

import torch
from torch.fx import Node

from qcompiler.backends.tvm.coding import written
from qcompiler.backends.tvm.families.base import Layer, Places, shape_of
from qcompiler.backends.tvm.fewbits import rounded_behind
from qcompiler.backends.tvm.kernels.activation import Activation, activation
from qcompiler.backends.tvm.kernels.rows import rows
from qcompiler.backends.tvm.ranges import ranged_behind
from qcompiler.ir import arguments

aten = torch.ops.aten


def gate(places: Places, node: Node) -> Layer | None:
    sides = [x for x in node.args if isinstance(x, Node)]
    turned = next((x for x in sides if x.target is aten.silu.default and len(x.users) == 1), None)
    if turned is None or len(sides) != 2 or sides[0] is sides[1] or shape_of(sides[0]) != shape_of(sides[1]):
        return None
    (other,) = (x for x in sides if x is not turned)
    found = [columns_of(x) for x in (arguments(turned)["self"], other)]
    if node in places.images or not all(places.known(source, before=node) for source, _ in found):
        return None
    names = [places.rows(source) for source, _ in found]
    (x, first), (factor, other_first) = zip(names, (begin for _, begin in found), strict=True)
    layer = Activation(
        function="silu", channels=places.shapes[node][-1], x=places.stores[x].plane, first=first,
        other=places.stores[factor].plane, other_first=other_first,
    )  # fmt: skip
    return called(places, node, layer, names)


def gelu(places: Places, node: Node) -> Layer | None:
    given = arguments(node)
    if not places.known(given["self"], before=node):
        return None
    x = places.rows(given["self"])
    layer = Activation(
        function="gelu_tanh" if given["approximate"] == "tanh" else "gelu",
        channels=places.shapes[node][-1], x=places.stores[x].plane,
    )  # fmt: skip
    return called(places, node, layer, [x])


def called(places: Places, node: Node, layer: Activation, names: list[str]) -> Layer:
    """With all that is written of its results."""
    to = written(places, node)
    block, rounded = rounded_behind(places, node, to.floats)
    extremes = () if to.floats is None else ranged_behind(places, node, rows(to.floats))
    whole = replace(layer, floats=to.floats, codes=to.codes, block=block, ranged=bool(extremes))
    return Layer(
        kernel="activation", description=whole, make=lambda name: activation(whole, places.isa, name),
        arguments=(*names, *to.step), results=(*to.names, *rounded, *extremes), constants=to.step,
    )  # fmt: skip


def columns_of(value: Node) -> tuple[Node, int]:
    """The value of which another is some columns, and the first of them; or itself."""
    split = value.args[0] if value.target is operator.getitem else None
    if not isinstance(split, Node) or split.target is not aten.split_with_sizes.default:
        return value, 0
    given = arguments(split)
    source, before = given["self"], given["split_sizes"][: value.args[1]]
    is_last = given["dim"] in (-1, len(shape_of(source)) - 1)
    return (source, sum(before)) if is_last and all(isinstance(size, int) for size in before) else (value, 0)
