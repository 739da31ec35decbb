"""A group as one function of TIR: its ops as expressions, in memory only where that is cheaper.

(inputs.., outputs..), float32 tensors of fixed shapes that lie contiguously
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch.fx import Node
from tvm import te

from qcompiler.backends.tvm.floatpath.functions import ARITHMETIC, Functions
from qcompiler.backends.tvm.floatpath.group import LANES, Group, expression
from qcompiler.backends.tvm.floatpath.values import Making, Value, loaded


def stages(
    group: Group, functions: Functions = ARITHMETIC, lanes: int = LANES
) -> tuple[list[Any], list[str]]:
    """The arguments of the function, and the names of what it stores, in order; the last is a result."""
    making = Making(functions=functions, lanes=lanes)
    given = [
        te.placeholder(group.shapes[node], "float32", name=f"x{i}") for i, node in enumerate(group.inputs)
    ]
    values: dict[Node, Value] = {
        node: loaded(held, group.shapes[node]) for node, held in zip(group.inputs, given, strict=True)
    }
    reads = Counter(read for node in group.nodes for read in node.all_input_nodes)
    results = {}
    for node in group.nodes:
        value = expression(node, making, values, group.shapes)
        assert value is not None, "a group holds only what the table takes"
        if node in group.outputs:
            value = making.copied(value)
            results[node] = making.stages[-1]
        values[node] = making.read_again(value, reads[node])
    names = [str(stage.op.name) for stage in making.stages]
    return [*given, *(results[node] for node in group.outputs)], names


def function(arguments: Sequence[Any], symbol: str) -> Any:
    """As it is written, without a schedule."""
    return te.create_prim_func(list(arguments)).with_attr("global_symbol", symbol)
