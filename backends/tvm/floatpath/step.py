"""A step of a program that computes a group by one function, on torch's tensors in place."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from qcompiler.backends.tvm.floatpath.group import Group

if TYPE_CHECKING:
    from qcompiler.backends.tvm.program import State


@dataclass(frozen=True, kw_only=True)
class Floats:
    """`function` reads the inputs of the group and writes its outputs, which are new tensors."""

    group: Group
    function: str

    @property
    def node(self) -> Node:
        return self.group.nodes[-1]

    @property
    def memory(self) -> tuple[str, ...]:
        return ()

    def run(self, state: "State") -> None:
        given = [state.tensor(node) for node in self.group.inputs]
        results = [torch.empty(self.group.shapes[node]) for node in self.group.outputs]
        state.functions[self.function](*given, *results)
        state.values.update(zip(self.group.outputs, results, strict=True))
