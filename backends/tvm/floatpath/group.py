"""Which ops become one function: neighbours that read one another, and nothing else in between.

    y = x + b;  z = relu(y);  w = kernel(z)    -->    [y, z] computed where z was, before w reads it

A group runs where its last op stood. It takes no op any more once something else reads what it computes, so
nothing ever waits for it, whatever the shape of the graph.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx import Node
from tvm import te

from qcompiler.backends.tvm.floatpath.functions import ARITHMETIC
from qcompiler.backends.tvm.floatpath.ops import CONTRACTIONS, MOVEMENT, OPS, products
from qcompiler.backends.tvm.floatpath.values import Given, Making, Value, loaded
from qcompiler.ir import arguments, spec
from qcompiler.ir.text import format_argument, operator_name

aten = torch.ops.aten
Shapes = Mapping[Node, tuple[int, ...]]

SIZED_BY_RESULT = (aten.expand.default,)  # ops whose sizes, known at run time or not, are those of the result
LONE = 1 << 17  # multiply-accumulates from which a contraction is a function of its own
LANES = 16  # of a vector
MOST = 32  # ops of one function; an expression of too many takes LLVM long


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Ops in their order; `inputs` are tensors from outside, `outputs` are read outside."""

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    shapes: Shapes = field(repr=False)

    def bytes(self, nodes: Iterable[Node]) -> int:
        """Of their float32 numbers."""
        return sum(4 * torch.Size(self.shapes[node]).numel() for node in nodes)

    @property
    def text(self) -> str:
        """All that the function is made of; groups of one text share it.

        a: f32[2, 3]; b: f32[3]; c = aten.add.Tensor(a, b, 1): f32[2, 3]; return c
        """
        names = {node: name(i) for i, node in enumerate((*self.inputs, *self.nodes))}

        def known(node: Node) -> str:
            return names.get(node, "?")

        lines = [f"{names[node]}: {self.kind(node)}" for node in self.inputs]
        for node in self.nodes:
            args = [format_argument(arg, known) for arg in node.args]
            args += [f"{key}={format_argument(arg, known)}" for key, arg in sorted(node.kwargs.items())]
            called = f"{operator_name(node.target)}({', '.join(args)})"
            lines.append(f"{names[node]} = {called}: {self.kind(node)}")
        return "; ".join([*lines, f"return {', '.join(names[node] for node in self.outputs)}"])

    def kind(self, node: Node) -> str:
        return f"f32[{', '.join(map(str, self.shapes[node]))}]"


def name(number: int) -> str:
    """a, b, .., z, a1, b1, .."""
    turn, letter = divmod(number, 26)
    return f"{chr(ord('a') + letter)}{turn or ''}"


# ---------------------------------------------------------------- one op


def expression(node: Node, making: Making, values: Mapping[Node, Value], shapes: Shapes) -> Value | None:
    """What a node computes, of values for the tensors that it reads."""
    read: Any = values.get
    given: Any = fx.map_arg(arguments(node), read)
    return OPS[node.target](Given(making=making, arguments=given, shape=shapes[node]))


def is_covered(node: Node, shapes: Shapes) -> bool:
    """Whether a row of the table takes a node: floats of known shapes that are not empty, in and out."""
    if node.op != "call_function" or node.target not in OPS:
        return False
    read = node.all_input_nodes
    tensors = [each for each in read if spec(each) is not None]
    if len(tensors) < len(read) and node.target not in SIZED_BY_RESULT:
        return False
    for each in (node, *tensors):
        held = spec(each)
        if held is None or held.dtype != torch.float32 or 0 in shapes.get(each, (0,)):
            return False
    lanes = Making(functions=ARITHMETIC, lanes=1)
    return expression(node, lanes, {each: blank(shapes[each]) for each in tensors}, shapes) is not None


def blank(shape: tuple[int, ...]) -> Value:
    """A value to try a row with."""
    return loaded(te.placeholder(shape, "float32"), shape)


def work(node: Node, shapes: Shapes) -> int:
    """Multiply-accumulates of a contraction, those of an axis too short for a vector as of a whole one."""
    if node.target not in CONTRACTIONS:
        return 0
    tensors = {name: shapes[arg] for name, arg in arguments(node).items() if isinstance(arg, Node)}
    along = (tensors["weight"] if node.target is aten.linear.default else (1, *shapes[node]))[-1]
    return products(node.target, tensors, shapes[node]) * LANES // min(LANES, along)


# ---------------------------------------------------------------- neighbours


@dataclass(eq=False)
class Open:
    """A group under way."""

    nodes: list[Node]
    closed: bool = False


def groups(
    events: Iterable[tuple[Node | None, Collection[Node]]], returned: Collection[Node], shapes: Shapes,
    covered: Callable[[Node, Shapes], bool] = is_covered,
) -> list[Group]:  # fmt: skip
    """`events` in order: an op that may join a group, or None, and the values that are read."""
    of: dict[Node, Open] = {}
    found: list[Open] = []
    outside: set[Node] = set(returned)
    for node, read in events:
        before = list(dict.fromkeys(of[each] for each in read if each in of))
        if node is None or not covered(node, shapes):
            outside.update(read)
            for each in before:
                each.closed = True
            continue
        alone = work(node, shapes) >= LONE
        joined = [each for each in before if not (each.closed or alone)]
        size = 1 + sum(len(each.nodes) for each in joined)
        joined = joined if size <= MOST else []
        outside.update(each for each in read if each not in of or of[each] not in joined)
        for each in before:
            each.closed = each.closed or each not in joined
        mine = merged(joined, found) if joined else Open([])
        if not joined:
            found.append(mine)
        mine.nodes.append(node)
        mine.closed = alone
        of.update((each, mine) for each in mine.nodes)
    order = {node: i for i, node in enumerate(of)}
    return [made for each in found if (made := finished(each.nodes, outside, shapes, order)) is not None]


def merged(joined: Sequence[Open], found: list[Open]) -> Open:
    """One group of several, at the place of the last."""
    *others, last = sorted(joined, key=found.index)
    for other in reversed(others):
        last.nodes[:0] = other.nodes
        found.remove(other)
    return last


def finished(
    nodes: Sequence[Node], outside: Collection[Node], shapes: Shapes, order: Mapping[Node, int]
) -> Group | None:
    """Without what is only another view of a result, which is free in torch; None if nothing is left."""
    kept = sorted(nodes, key=order.__getitem__)
    while True:
        inside = set(kept)
        views = [node for node in kept if node.target in MOVEMENT and inside.isdisjoint(node.users)]
        if not views:
            break
        kept = [node for node in kept if node not in views]
    if not kept:
        return None
    dropped = {read for node in nodes if node not in kept for read in node.all_input_nodes}
    inputs = dict.fromkeys(
        read
        for node in kept
        for read in node.all_input_nodes
        if read not in inside and spec(read) is not None
    )
    return Group(
        nodes=tuple(kept), inputs=tuple(inputs), shapes=shapes,
        outputs=tuple(node for node in kept if node in outside or node in dropped),
    )  # fmt: skip
