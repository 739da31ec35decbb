"""Canonical text of a graph: readable, diffable, hashable, and read back without executing anything.

    x: f32[s77, 3, 8, 8] = input()
    conv_weight: f32[4, 3, 3, 3] = tensor("conv.weight")
    conv2d: f32[s77, 4, 8, 8] = aten.conv2d.default(x, conv_weight, None, [1, 1], [1, 1], [1, 1], 1)
    return [conv2d]

The text is a small subset of Python's syntax, so `ast` parses it; names resolve only to the operators of
`torch.ops.aten`, `torch.ops.qcompiler` and the arithmetic on symbolic sizes.
"""

import ast
import hashlib
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from qcompiler.errors import ArtifactError, GraphError
from qcompiler.ir.edit import normalize_arguments
from qcompiler.ir.graph import Graph, Signature, operator_of
from qcompiler.ir.spec import DTYPE_NAMES, set_value, spec, value

SIZE_OPS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
    "mod": operator.mod, "getitem": operator.getitem, "truediv": operator.truediv, "neg": operator.neg,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "max": torch.sym_max, "min": torch.sym_min, "float": torch.sym_float,
    "int": torch.sym_int, "not": torch.sym_not,
}  # fmt: skip
SIZE_NAMES = {function: name for name, function in SIZE_OPS.items()}
NAMESPACES = ("aten", "qcompiler")
NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
WORDS = (torch.dtype, torch.memory_format, torch.layout)
# What a pure operator may return; text, files and devices are not among it.
RETURNS = {"Tensor", "Optional[Tensor]", "List[Tensor]", "int", "float", "bool", "number", "SymInt"}
# An input's example size only has to differ from those of other symbols and from the usual fixed sizes.
EXAMPLE_SIZE = 61


def format_text(graph: Graph) -> str:
    """One line per value, in execution order; symbolic sizes are numbered as they appear."""
    return renumber("\n".join(format_node(node) for node in graph.fx.nodes) + "\n")


def renumber(text: str) -> str:
    """Call the symbols of the shapes n0, n1, ... in the order of their appearance."""
    symbols = dict.fromkeys(re.findall(r"\b[su]\d+\b", "".join(re.findall(r": (\w+\[.*?\]) =", text))))
    renamed = {symbol: f"n{number}" for number, symbol in enumerate(symbols)}
    return re.sub(
        r"(: \w+\[)(.*?)(\] =)",
        lambda found: found[1] + re.sub(r"\w+", lambda w: renamed.get(w[0], w[0]), found[2]) + found[3],
        text,
    )


def format_node(node: Node) -> str:
    if node.op == "output":
        return f"return {format_argument(list(node.args[0]))}"  # type: ignore[arg-type]
    found = spec(node)
    kind = f": {found}".replace("[]", "[()]") if found else ""
    if node.op == "placeholder":
        return f"{node.name}{kind} = input()"
    if node.op == "get_attr":
        return f"{node.name}{kind} = tensor({str(node.target)!r})".replace("'", '"')
    args = [format_argument(arg) for arg in node.args]
    args += [f"{key}={format_argument(arg)}" for key, arg in sorted(node.kwargs.items())]
    return f"{node.name}{kind} = {operator_name(node.target)}({', '.join(args)})"


def operator_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if target not in SIZE_NAMES:
        raise GraphError(
            f"the graph calls '{target}'",
            why="only torch operators and arithmetic on sizes can be written down",
            fix="trace the model with trace(), which leaves nothing else",
        )
    return f"size.{SIZE_NAMES[target]}"


def format_argument(arg: Any, name: Callable[[Node], str] = lambda node: node.name) -> str:
    if isinstance(arg, Node):
        return name(arg)
    if isinstance(arg, list | tuple):
        return f"[{', '.join(format_argument(part, name) for part in arg)}]"
    if isinstance(arg, torch.dtype | torch.memory_format | torch.layout | torch.device):
        return repr(str(arg))
    return repr(arg)


def fingerprint(graph: Graph) -> str:
    """SHA-256 of structure, literals and the bytes of every constant; names of nodes do not matter."""
    numbers = {node: f"v{i}" for i, node in enumerate(graph.fx.nodes)}
    digest = hashlib.sha256()
    lines = []
    for node in graph.fx.nodes:
        called = operator_name(node.target) if node.op == "call_function" else node.op
        args = format_argument(
            [*node.args, *(part for pair in sorted(node.kwargs.items()) for part in pair)],
            numbers.__getitem__,
        )
        kind = f": {spec(node)}" if node.op == "placeholder" else ""
        lines.append(f"{numbers[node]}{kind} = {called}{args if node.op != 'placeholder' else ''}")
        if node.op == "get_attr":
            digest.update(tensor_bytes(graph.tensors[str(node.target)]))
    digest.update(renumber("\n".join(lines)).encode())
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype}{tuple(tensor.shape)}".encode() + flat.numpy().tobytes()


def parse_text(text: str, tensors: Mapping[str, Tensor], signature: Signature, stage: str) -> Graph:
    """Read a graph back; symbolic sizes get fresh symbols, specs are inferred again."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArtifactError(
            f"line {getattr(error, 'lineno', 1)} of the graph text is not valid", fix="save the model again"
        ) from error
    reader = Reader(tensors)
    for statement in tree.body:
        try:
            reader.read(statement)
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"line {statement.lineno} of the graph text cannot be read",
                why=f"{type(error).__name__}: {str(error)[:200]}",
                fix="save the model again",
            ) from error
    inputs = sum(node.op == "placeholder" for node in reader.fx.nodes)
    if not reader.returned or inputs != len(signature.inputs):
        raise ArtifactError(
            f"the graph text has {inputs} of {len(signature.inputs)} inputs"
            f" and {'a' if reader.returned else 'no'} final return",
            why="it was cut short or belongs to another model",
            fix="save the model again",
        )
    return Graph(fx=reader.fx, tensors=dict(tensors), stage=stage, signature=signature)


class Reader:
    """Builds fx nodes from parsed statements."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.fx = fx.Graph()
        self.values: dict[str, Node] = {}
        self.symbols: dict[str, int] = {}
        self.tensors = tensors
        self.returned = False
        self.fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def read(self, statement: ast.stmt) -> None:
        if self.returned:
            raise self.refuse(statement)
        match statement:
            case ast.Return(value=ast.List() as returned):
                self.fx.output(self.argument(returned))
                self.returned = True
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.Call() as call):
                self.values[name] = self.node(name, call, kind)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                self.values[name] = self.node(name, call, None)
            case _:
                raise self.refuse(statement)

    def refuse(self, where: ast.AST) -> ArtifactError:
        return ArtifactError(
            f"the graph text has an unknown statement: {ast.unparse(where)[:80]}",
            why="only values, operators and a final return may stand there",
            fix="save the model again",
        )

    def node(self, name: str, call: ast.Call, kind: ast.expr | None) -> Node:
        path = ast.unparse(call.func)
        if path == "input":
            node = self.fx.create_node("placeholder", name, name=name)
            set_value(node, self.fake_input(kind))
            return node
        if path == "tensor":
            key = ast.literal_eval(call.args[0])
            if key not in self.tensors:
                raise ArtifactError(f"the graph needs the tensor '{key}', which the file lacks")
            node = self.fx.create_node("get_attr", key, name=name)
            set_value(node, self.fake_mode.from_tensor(self.tensors[key], static_shapes=True))
            return node
        args = tuple(self.argument(arg) for arg in call.args)
        kwargs = {str(keyword.arg): self.argument(keyword.value) for keyword in call.keywords}
        target = self.operator(path, call)
        fake_args, fake_kwargs = fx.map_arg(args, value), fx.map_arg(kwargs, value)
        if path.startswith("size.") and not are_sizes(target, fake_args):
            raise self.refuse(call)
        node = self.fx.create_node("call_function", target, args, kwargs, name=name)
        normalize_arguments(node)
        with self.fake_mode:
            set_value(node, operator_of(node)(*fake_args, **fake_kwargs))
        return node

    def operator(self, path: str, where: ast.AST) -> Callable[..., Any]:
        parts = path.split(".")
        if parts[0] == "size" and len(parts) == 2 and parts[1] in SIZE_OPS:
            return SIZE_OPS[parts[1]]
        if len(parts) == 3 and parts[0] in NAMESPACES and all(part.isidentifier() for part in parts):
            packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
            overload = getattr(packet, parts[2], None)
            if isinstance(overload, torch._ops.OpOverload) and is_harmless(overload):
                return overload
        raise self.refuse(where)

    def argument(self, expression: ast.expr) -> Any:
        match expression:
            case ast.Name(id=name) if name in self.values:
                return self.values[name]
            case ast.List(elts=elements):
                return [self.argument(element) for element in elements]
            case ast.Constant(value=str(word)) if word.startswith("torch."):
                found = getattr(torch, word.removeprefix("torch."), None)
                if isinstance(found, WORDS):
                    return found
            case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
                return -math.inf
            case ast.Constant(value=str() | int() | float() | None):
                return expression.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.Name(id="inf" | "nan" as word):
                return float(word)
        raise self.refuse(expression)

    def fake_input(self, kind: ast.expr | None) -> Any:
        if not isinstance(kind, ast.Subscript):
            raise ArtifactError("an input of the graph text has no shape", fix="save the model again")
        dtype = {name: dtype for dtype, name in DTYPE_NAMES.items()}[ast.unparse(kind.value)]
        sizes = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        shape: list[Any] = []
        dynamic = []
        for size in sizes:
            if isinstance(size, ast.Constant):
                shape.append(size.value)
                dynamic.append(DimDynamic.STATIC)
            elif not isinstance(size, ast.Name | ast.BinOp):
                raise self.refuse(kind)
            else:
                new = EXAMPLE_SIZE + len(self.symbols)
                shape.append(self.symbols.setdefault(ast.unparse(size), new))
                dynamic.append(DimDynamic.DYNAMIC)
        context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
        return self.fake_mode.from_tensor(torch.empty(shape, dtype=dtype), symbolic_context=context)


def is_harmless(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator is a function of numbers: it writes nothing, prints nothing and opens no file."""
    schema = operator._schema
    return (
        not schema.is_mutable
        and all(argument.name != "filename" for argument in schema.arguments)
        and bool(schema.returns)
        and all(str(returned.type) in RETURNS for returned in schema.returns)
    )


def are_sizes(target: Callable[..., Any], args: Any) -> bool:
    """Whether arithmetic on sizes gets numbers (or one element of a tuple is taken)."""
    if target is operator.getitem:
        return len(args) == 2 and isinstance(args[0], list | tuple) and isinstance(args[1], int)
    return all(isinstance(arg, NUMBERS) for arg in args)
