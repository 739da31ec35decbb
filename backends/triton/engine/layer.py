"""A linear of a quantized graph that an op computes, with what its epilogue takes along."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from qcompiler.backends.triton.decisions import Linear
from qcompiler.ir import arguments
from qcompiler.passes.fuse import addend
from qcompiler.passes.partition import Region

aten = torch.ops.aten

ACTIVATIONS: Mapping[Any, tuple[str, Callable[[Mapping[str, Any]], bool]]] = {
    aten.relu.default: ("relu", lambda given: True),
    aten.gelu.default: ("gelu", lambda given: given["approximate"] == "none"),
    aten.silu.default: ("silu", lambda given: True),
}
"""An op behind a linear -> the activation of an epilogue, and the calls that are it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A linear: x [..., K] in floats, its weight as constants, and the ops behind it up to `result`.

    tail: those ops. Invariant: nobody reads them but one another, and the last. A region without operands
    reads x as it is, and the format of its problem is then a layout. coded: the `quantize` whose codes it
    reads by one scale, None where rows have scales of their own, or x is read as it is. onward: the
    `quantize` of its result, if nobody reads that but layers that read its codes. beside: another linear of
    x, which the activated sums multiply, if it is the gate of that. Where its problem is gated without
    another, they multiply the second half of its own.
    """

    region: Region
    x: Node
    codes: str
    scale: str
    bias: Node | None
    activation: str
    residual: Node | None
    tail: tuple[Node, ...]
    problem: Linear
    dtype: torch.dtype
    coded: Node | None
    onward: Node | None = None
    beside: "Layer | None" = None

    @property
    def anchor(self) -> Node:
        return self.region.anchor

    @property
    def linears(self) -> "tuple[Layer, ...]":
        """Itself, and what it is the gate of: the rows of their weights come one above the other."""
        return (self,) if self.beside is None else (self, self.beside)

    @property
    def names(self) -> tuple[str, ...]:
        """Under which plans and reports have its linears."""
        return tuple(each.anchor.name for each in self.linears)

    @property
    def weight(self) -> Node:
        """What decodes its codes."""
        assert self.region.weight is not None
        return self.region.weight

    @property
    def is_weight_only(self) -> bool:
        return not self.region.operands

    @property
    def result(self) -> Node:
        return self.tail[-1] if self.tail else self.anchor


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Layers in execution order, and linears on codes that are none: anchor's name -> why.

    apart: gates that are not computed with what they multiply: anchor's name -> why.
    """

    found: tuple[Layer, ...]
    refused: Mapping[str, str]
    apart: Mapping[str, str]


def only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def activation_behind(last: Node) -> tuple[str, tuple[Node, ...]]:
    """The activation that is the only reader of a value, and that reader; "none" where it is another op."""
    reader = only_reader(last)
    if reader is None or reader.target not in ACTIVATIONS:
        return "none", ()
    name, is_it = ACTIVATIONS[reader.target]
    return (name, (reader,)) if is_it(arguments(reader)) else ("none", ())


def sum_behind(last: Node) -> tuple[Node | None, tuple[Node, ...]]:
    """What the only reader of a value adds to it, and that reader; nothing where it adds nothing."""
    reader = only_reader(last)
    residual = None if reader is None else addend(last, reader)
    return (None, ()) if reader is None or residual is None else (residual, (reader,))
