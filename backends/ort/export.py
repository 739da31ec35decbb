"""A graph as an ONNX model: torch's exporter, our translation table, and names that survive.

Graph --torch.export--> ExportedProgram --torch.onnx + translations--> onnx_ir.Model
"""

import contextlib
import io
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import ml_dtypes
import onnx
import onnx_ir
import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from qcompiler.backends.ort.exporter import shortened
from qcompiler.errors import LoweringError
from qcompiler.ir import Graph, arguments, value
from qcompiler.ir.graph import operator_of
from qcompiler.ir.spec import spec

# ONNX stores these formats in types of their own; inside a graph their codes are held in int8.
NARROW = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int2": ml_dtypes.int2}
EXTERNAL_DATA_BYTES = 1_500_000_000  # a protobuf file ends at 2 GB
IR_VERSION = 10
SOURCE = re.compile(r"%(\w+) ")  # the node of the exporter's program, at the head of its note


def to_onnx(graph: Graph, *, opset: int, portable: bool = True) -> onnx_ir.Model:
    """Translate a prepared graph; raises LoweringError naming the op that has no translation."""
    from qcompiler.backends.ort.translate import translations

    module, renamed = as_module(graph)
    examples = tuple(example_of(node) for node in graph.inputs)
    dynamic = tuple(dynamic_dims(node) for node in graph.inputs)
    try:
        with silenced(), shortened():
            program = torch.export.export(module, examples, dynamic_shapes=dynamic)
            exported = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, verbose=False,
                custom_translation_table=translations(opset, portable=portable),
                input_names=[node.name for node in graph.inputs],
            )  # fmt: skip
    except Exception as error:
        raise LoweringError(
            "the graph cannot be written as ONNX",
            why=last_line(error),
            fix="keep the op it names in float or out of the model; `qcompiler explain` lists the ops",
        ) from error
    if exported is None or exported.exported_program is None:
        raise LoweringError("the exporter returned nothing")
    model: onnx_ir.Model = exported.model
    restore_names(model, graph, exported.exported_program)
    narrow_types(model, graph, renamed)
    strip(model)
    return model


def as_module(graph: Graph) -> tuple[fx.GraphModule, dict[str, str]]:
    """The graph as a module with flat buffer names; also buffer name -> constant name."""
    root, renamed = torch.nn.Module(), dict[str, str]()
    for name, tensor in graph.tensors.items():
        flat = re.sub(r"\W", "_", name)
        while flat in renamed:
            flat += "_"
        renamed[flat] = name
        root.register_buffer(flat, tensor)
    flat_of = {name: flat for flat, name in renamed.items()}
    copy = fx.Graph()
    mapping: dict[Node, Node] = {}
    returned = copy.graph_copy(graph.fx, mapping)
    for node in copy.nodes:
        if node.op == "get_attr":
            node.target = flat_of[str(node.target)]
        node.target = operator_of(node) if node.op == "call_function" else node.target
        if node.target is torch.ops.aten.clamp.default and value(node).is_floating_point():
            # clamp(x, 0, 1.5): the exporter cannot promote bounds of mixed types.
            node.args = tuple(float(bound) if isinstance(bound, int) else bound for bound in node.args)
    # What is constant is not the exporter's business: the executable puts it back.
    results = [result for result in returned if isinstance(result, Node)]  # type: ignore[union-attr]
    copy.output(tuple(own_values(results)))
    return fx.GraphModule(root, copy), renamed


def own_values(results: Sequence[Node]) -> Iterator[Node]:
    """ONNX wants a value of its own for every output: copy inputs, constants and what is returned twice."""
    for position, result in enumerate(results):
        is_own = result.op == "call_function" and result not in results[:position]
        yield result if is_own else result.graph.call_function(torch.ops.aten.clone.default, (result,))


def example_of(node: Node) -> torch.Tensor:
    """Zeros of an input's shape; a symbolic size takes the size it was traced with."""
    fake = value(node)
    sizes = [size if isinstance(size, int) else size.node.hint for size in fake.shape]
    return torch.zeros(sizes, dtype=fake.dtype)


def dynamic_dims(node: Node) -> dict[int, Any]:
    found = spec(node)
    shape = found.shape if found else ()
    return {axis: Dim.AUTO for axis, size in enumerate(shape) if not isinstance(size, int)}


# ---------------------------------------------------------------- names and types


def restore_names(model: onnx_ir.Model, graph: Graph, program: ExportedProgram) -> None:
    """Give each ONNX node, and the value it computes, the name of the graph node it came from.

    The exporter numbers ops anew, but keeps their order: the k-th linear in its program is the k-th linear
    here. An op that it has more or fewer of keeps the exporter's names, and the contract finds it lost.
    Values matter as much as nodes, since some of ONNX Runtime's fusions name a node after its result.
    """
    ours, theirs = names_by_op(graph.fx), names_by_op(program.graph)
    original = {
        exported: name
        for target, names in ours.items()
        if len(names) == len(theirs.get(target, ()))
        for name, exported in zip(names, theirs[target], strict=True)
    }
    parts: dict[str, list[onnx_ir.Node]] = defaultdict(list)
    for node in model.graph:
        found = SOURCE.search(node.metadata_props.get("pkg.torch.onnx.fx_node", ""))
        if found is not None and found[1] in original:
            parts[original[found[1]]].append(node)
    mains = {name: main_of(nodes) for name, nodes in parts.items()}
    for name, nodes in parts.items():
        for number, node in enumerate(nodes):
            node.name = name if node is mains[name] else f"{name}_{node.op_type}_{number}"
    rename_values(model, {name: node.outputs[0] for name, node in mains.items()})


def names_by_op(graph: fx.Graph) -> dict[str, list[str]]:
    """Op -> the names of its nodes, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function":
            found[str(node.target)].append(node.name)
    return found


def main_of(parts: Sequence[onnx_ir.Node]) -> onnx_ir.Node:
    """Of the ONNX nodes that one of ours becomes, the engine's own, or what computes; else the last."""
    own = (node for node in parts if node.domain)
    computing = (node for node in parts if node.op_type in COMPUTING)
    return next(chain(own, computing), parts[-1])


def rename_values(model: onnx_ir.Model, wanted: Mapping[str, onnx_ir.Value]) -> None:
    """Give values their names, moving aside what the exporter has called so."""
    fixed = {*model.graph.initializers, *(given.name for given in model.graph.inputs)}
    chosen = {name: value for name, value in wanted.items() if name not in fixed}
    for node in model.graph:
        for output in node.outputs:
            if output.name in chosen and chosen[output.name] is not output:
                output.name = f"{output.name}_{node.op_type}_value"
    for name, result in chosen.items():
        result.name = name


# What makes a node the main one among the reshapes, casts and shape arithmetic around it.
COMPUTING = frozenset({
    "Conv", "Gemm", "MatMul", "MatMulInteger", "MatMulIntegerToFloat", "Attention", "Add", "Mul", "MaxPool",
    "AveragePool", "GlobalAveragePool", "Concat", "Sigmoid", "LeakyRelu", "QuantizeLinear",
    "DequantizeLinear", "Relu", "Clip",
})  # fmt: skip


def narrow_types(model: onnx_ir.Model, graph: Graph, renamed: dict[str, str]) -> None:
    """Store 4- and 2-bit codes, and their zero points, in ONNX's types of that width."""
    formats: dict[str, str] = {}
    for node in graph.fx.nodes:
        if node.target is torch.ops.qcompiler.dequantize.default:
            given = arguments(node)
            for name in ("q", "zero_point"):
                if given["format"] in NARROW and given[name].op == "get_attr":
                    formats[str(given[name].target)] = given["format"]
    for name, initializer in model.graph.initializers.items():
        format = formats.get(renamed.get(name, name))
        if format is None or initializer.const_value is None:
            continue
        codes = initializer.const_value.numpy().astype(NARROW[format])
        initializer.const_value = onnx_ir.Tensor(codes, name=name)
        initializer.dtype = initializer.const_value.dtype


def strip(model: onnx_ir.Model) -> None:
    """Drop what would make equal models differ: stack traces, paths, the exporter's notes."""
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "qcompiler", ""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for initializer in model.graph.initializers.values():
        initializer.metadata_props.clear()
    for given in (*model.graph.inputs, *model.graph.outputs):
        given.metadata_props.clear()


# ---------------------------------------------------------------- files


def save(model: onnx_ir.Model, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a model, with its weights beside it when they exceed what one protobuf file holds."""
    model.metadata_props.update(metadata or {})
    size = sum(i.const_value.nbytes for i in model.graph.initializers.values() if i.const_value is not None)
    external = f"{path.name}.data" if size > EXTERNAL_DATA_BYTES else None
    onnx_ir.save(model, path, external_data=external)
    if external is None:
        onnx.checker.check_model(str(path))


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """The exporter reports progress and missing optional packages; neither concerns our user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def last_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
