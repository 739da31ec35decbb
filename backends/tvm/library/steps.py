"""The steps of a program as data, which the loader of a library follows without torch.

    Load(node, name)    -->    {"do": "load", "value": node, "place": place in the table}
    Call, Call, Call    -->    {"do": "call", "first": 0, "last": 3}

Shapes are those of one call, so that what torch computes of sizes alone is gone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from typing import Any

import torch
from torch.fx import Node

from qcompiler.backends.tvm.floatpath.step import Floats
from qcompiler.backends.tvm.program import Call, Compute, Moving, Program, Refer, Step, Store, reads
from qcompiler.errors import LoweringError
from qcompiler.ir import Graph, arguments, value

aten = torch.ops.aten
qc = torch.ops.qcompiler

Data = dict[str, Any]
Shape = tuple[int, ...]
SHOWN = 5  # nodes named in a refusal


def portable_steps(program: Program, graph: Graph) -> list[Step]:
    """What is left to do in a call of known shapes; raises LoweringError with the nodes that need torch."""
    read: set[Node] = set(graph.output.all_input_nodes)
    kept: list[Step] = []
    for step in reversed(program.steps):
        if not isinstance(step, Compute) or step.node in read:
            read.update(node for node in reads(step) if node in program.shapes)
            kept.append(step)
    refused = [step.node for step in kept[::-1] if isinstance(step, Refer) or computed(step, program) == {}]
    if refused:
        more = f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        raise LoweringError(
            "a library cannot hold what torch or the reference computes",
            node=", ".join(f"'{node.name}' ({node.target})" for node in refused[:SHOWN]) + more,
            why="it has kernels of our own and movements of data only",
            fix="take these ops out of the model, to before or behind it, or deploy the saved model (.qc)",
        )  # fmt: skip
    return kept[::-1]


def recorded(steps: Sequence[Step], program: Program, places: Mapping[str, int]) -> list[Data]:
    found: list[Data] = []
    calls = 0
    for is_call, row in groupby(steps, lambda step: isinstance(step, Call)):
        if is_call:
            first, calls = calls, calls + len(list(row))
            found.append({"do": "call", "first": first, "last": calls})
        else:
            found += [computed(step, program) or moving(step, program, places) for step in row]
    return found


def moving(step: Step, program: Program, places: Mapping[str, int]) -> Data:
    """A function of values, or a step between a value and memory: all that it holds, named for its kind."""
    if isinstance(step, Floats):
        to = [{"value": node.name, "shape": list(program.shapes[node])} for node in step.group.outputs]
        given = [node.name for node in step.group.inputs]
        return {"do": "function", "name": step.function, "of": given, "to": to}
    assert isinstance(step, Moving), f"{type(step).__name__} has no form as data"
    held = {field.name: getattr(step, field.name) for field in fields(step)}
    name = held.pop("name")
    where = {"store": name} if name in program.stores else {"place": places[name]}
    about = {WORDS.get(key, key): plain(each) for key, each in held.items()}
    return {"do": type(step).__name__.lower(), **where, **about}


WORDS = {"node": "value", "store": "plane"}  # fields of steps, as the loader calls them


def plain(held: Any) -> Any:
    match held:
        case Node():
            return held.name
        case Store():
            return {**asdict(held.plane), "image": held.is_image}
        case tuple():
            return list(held)
    return held


# ---------------------------------------------------------------- what torch computes, as numpy does


def computed(step: Step, program: Program) -> Data | None:
    """An op as the loader has it; {} if it has none, None where a step is no op."""
    if not isinstance(step, Compute):
        return None
    node, record = step.node, OPS.get(step.node.target)
    made = record(node, program.shapes) if record is not None and node in program.shapes else {}
    if not made:
        return {}
    return {"of": [read.name for read in made.pop("of", node.all_input_nodes)], "value": node.name, **made}


def reshaped(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    return {"do": "reshape", "of": [node.args[0]], "shape": list(shapes[node])}


def expanded(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    return {"do": "broadcast", "of": [node.args[0]], "shape": list(shapes[node])}


def permuted(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    rank = len(shapes[node])
    return {"do": "transpose", "axes": [axis % rank for axis in arguments(node)["dims"]]}


def swapped(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    given, axes = arguments(node), list(range(len(shapes[node])))
    first, second = given["dim0"], given["dim1"]
    axes[first], axes[second] = axes[second], axes[first]
    return {"do": "transpose", "axes": axes}


def selected(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    given = arguments(node)
    if not isinstance(given["index"], int):
        return {}
    return {"do": "select", "axis": given["dim"], "index": given["index"]}


def concatenated(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    given = arguments(node)
    return {"do": "concatenate", "of": list(given["tensors"]), "axis": given["dim"]}


def added(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    """Of tensors of one type: numpy and torch find other types for those of two."""
    given = arguments(node)
    both = [given["self"], given["other"]]
    if given["alpha"] != 1 or not all(isinstance(x, Node) and x in shapes for x in both):
        return {}
    return {"do": "add", "of": both} if len({value(x).dtype for x in both}) == 1 else {}


def differing(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    number = arguments(node)["other"]
    return {"do": "differs", "number": number} if isinstance(number, int | float) else {}


def counted(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    """0, 1, .. of whole numbers."""
    return {"do": "count", "of": [], "shape": list(shapes[node])} if value(node).dtype == torch.int64 else {}


def dequantized(node: Node, shapes: Mapping[Node, Shape]) -> Data:
    """Of codes with one scale."""
    given = arguments(node)
    if given["axis"] is not None or given["block"] or given["format"] not in ("int8", "uint8"):
        return {}
    return {"do": "dequantize", "of": [given["q"], given["scale"], given["zero_point"]]}


OPS: Mapping[Any, Callable[[Node, Mapping[Node, Shape]], Data]] = {
    aten.view.default: reshaped,
    aten.reshape.default: reshaped,
    aten._unsafe_view.default: reshaped,
    aten.flatten.using_ints: reshaped,
    aten.squeeze.dim: reshaped,
    aten.squeeze.dims: reshaped,
    aten.unsqueeze.default: reshaped,
    aten.expand.default: expanded,
    aten.permute.default: permuted,
    aten.transpose.int: swapped,
    aten.select.int: selected,
    aten.cat.default: concatenated,
    aten.add.Tensor: added,
    aten.ne.Scalar: differing,
    aten.arange.default: counted,
    qc.dequantize.default: dequantized,
}
