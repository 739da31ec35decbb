"""Values that are returned as they are computed: memory of torch's that functions write, so nobody copies it.

    y = kernel(..);  z = transpose(view(y));  return z    -->    y, z = views of new memory;  kernel(.., y)

What only names that memory anew can be done before it is written, and stands in no row of calls.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from qcompiler.backends.tvm.layout import RESHAPES
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.program import Store
from qcompiler.ir import Graph
from qcompiler.rewrite import Trait, has

aten = torch.ops.aten
TURNS = (aten.transpose.int, aten.permute.default)


@dataclass(frozen=True, kw_only=True)
class Lent:
    """values: those in such memory, and whether their numbers lie in their own order."""

    graph: Graph
    values: dict[Node, bool] = field(default_factory=dict)

    def takes(self, value: Node, plane: Plane) -> bool:
        """Lend for rows without gaps that are returned and moved for nothing else; whether it is so."""
        moved = [user for user in value.users if has(user, Trait.MOVES_DATA)]
        is_result = self.graph.output in value.users or bool(moved)
        if not is_result or plane.pitch != plane.channels or not all(map(self.is_only_returned, moved)):
            return False
        self.values[value] = True
        return True

    def is_only_returned(self, moved: Node) -> bool:
        return bool(moved.users) and all(
            user is self.graph.output or (has(user, Trait.MOVES_DATA) and self.is_only_returned(user))
            for user in moved.users
        )

    def names(self, moved: Node) -> bool:
        """Whether an op only names lent memory anew: reshapes what lies in its own order, or turns axes."""
        read: Any = moved.args[0] if moved.args else None
        named = (*TURNS, *RESHAPES) if self.values.get(read) else TURNS
        if read not in self.values or moved.target not in named:
            return False
        self.values[moved] = moved.target in RESHAPES
        return True

    def others(self, stores: Mapping[str, Store]) -> dict[str, Store]:
        """The stores that are memory of ours."""
        names = {value.name for value in self.values}
        return {name: store for name, store in stores.items() if name not in names}
