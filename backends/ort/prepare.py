"""The forms that ONNX Runtime's kernels are good at; each is exact, and none changes what is computed.

linear(dq(q[.., K]), w, b)       -->  view(linear(dq(view(q, [-1, K])), w, b))    QGemm takes 2-D
linear(dq(dynamic q), dq(w), b)  -->  integer_matmul(q, w^T) + b                  MatMulIntegerToFloat
linear(x, dq(w), b)              -->  matmul(x, dq(w^T)) + b                      MatMulNBits: [K, N]
move(q8)                         -->  q(move(dq(q8)))                             FP8 codes
avg_pool(x, 0, ceil, include)    -->  avg_pool(x, 0, ceil)                        divides by what lies inside
"""

from typing import Any

import torch
from torch.fx import Node

from qcompiler.errors import LoweringError
from qcompiler.ir import Draft, Graph, arguments, label, spec, value
from qcompiler.ir.ops import FLOAT8

aten = torch.ops.aten
qc = torch.ops.qcompiler


def prepare(graph: Graph) -> Graph:
    """Rewrite every linear into the form of its kernel; names of linears are kept."""
    draft = Draft(graph)
    flattened: dict[Node, Node] = {}
    for node in draft.nodes:
        if node.target is aten.avg_pool2d.default:
            clip_windows(draft, node)
        elif computes_on_float8(node):
            decode_around(draft, node)
        if node.target is not aten.linear.default:
            continue
        weight = node.args[1]
        if not isinstance(weight, Node) or weight.target is not qc.dequantize.default:
            continue
        source = node.args[0]
        assert isinstance(source, Node)
        is_codes = source.target is qc.dequantize.default and "int" in str(arguments(source)["format"])
        if not is_codes:
            use_transposed_weight(draft, node, weight)
        elif arguments(source)["scale"].op != "get_attr":
            use_integer_matmul(draft, node, source, weight)
        elif len(rank_of(node)) > 2:
            flatten(draft, node, source, flattened)
    return draft.finish()


def clip_windows(draft: Draft, node: Node) -> None:
    """In ceil mode torch divides by the part of a window that lies inside, an integer kernel by all of it."""
    given = arguments(node)
    if given["divisor_override"] is not None:
        raise LoweringError(
            "avg_pool2d with divisor_override cannot be written as ONNX", node=label(node),
            why="its AveragePool divides by the size of the window",
            fix="leave divisor_override out and scale the result by window / divisor",
        )  # fmt: skip
    if not given["ceil_mode"] or not given["count_include_pad"]:
        return
    source = given["self"]
    if any(given["padding"]):
        # Its float kernel is right; a clamp that clamps nothing keeps it from being replaced.
        lowest = torch.finfo(torch.float32).min
        source = draft.call(aten.clamp.default, source, lowest, None, before=node, origin=node)
    included = any(given["padding"])
    node.args = (source, given["kernel_size"], given["stride"], given["padding"], True, included, None)


def computes_on_float8(node: Node) -> bool:
    """Data movement and max pooling on codes: of FP8, most of ONNX's operators take none."""
    held = value(node) if node.op == "call_function" and node.target is not qc.quantize.default else None
    return isinstance(held, torch.Tensor) and held.dtype in FLOAT8


def decode_around(draft: Draft, node: Node) -> None:
    codes = node.args[0]
    assert isinstance(codes, Node)
    source = codes
    while source.target is not qc.quantize.default:
        source = source.args[0]  # type: ignore[assignment]
    given = arguments(source)
    placed = (given["scale"], given["zero_point"], given["format"])
    node.replace_input_with(
        codes, draft.call(qc.dequantize.default, codes, *placed, before=node, origin=source)
    )
    draft.infer(node)
    encoded = draft.call(qc.quantize.default, node, *placed, before=node.next, origin=source)
    draft.replace(node, encoded, only=[user for user in node.users if user is not encoded])


def rank_of(node: Node) -> tuple[Any, ...]:
    found = spec(node)
    return found.shape if found else ()


def flatten(draft: Draft, node: Node, source: Node, flattened: dict[Node, Node]) -> None:
    """Run a linear on [rows, K]; linears that share an input share the reshape."""
    given = arguments(source)
    shape = rank_of(node)
    if source not in flattened:
        width = rank_of(source)[-1]
        rows = draft.call(aten.view.default, given["q"], [-1, width], before=node, origin=source)
        flattened[source] = draft.call(
            qc.dequantize.default, rows, given["scale"], given["zero_point"], given["format"], None, 0,
            before=node, origin=source,
        )  # fmt: skip
    node.args = (flattened[source], *node.args[1:])
    draft.infer(node)
    behind = node.next
    sizes = [
        size if isinstance(size, int) else draft.call(aten.sym_size.int, given["q"], axis, before=behind)
        for axis, size in enumerate(shape)
    ]
    unknown = [axis for axis, size in enumerate(sizes) if isinstance(size, Node)]
    if len(unknown) == 1:
        sizes[unknown[0]] = -1
    restored = draft.call(aten.view.default, node, sizes, before=behind, origin=node)
    draft.replace(node, restored, only=[user for user in node.users if user is not restored])


def use_integer_matmul(draft: Draft, node: Node, source: Node, weight: Node) -> None:
    """The run-time-quantized form: bias added in float behind the product."""
    inputs, filters = arguments(source), arguments(weight)
    codes = draft.tensor(filters["q"])
    assert codes is not None
    transposed = draft.constant(f"{filters['q'].target}.transposed", codes.t().contiguous(), before=node)
    bias = node.args[2]
    node.target = qc.integer_matmul.default
    node.args = (inputs["q"], inputs["scale"], inputs["zero_point"], transposed, filters["scale"])
    draft.infer(node)
    add_behind(draft, node, bias)


def use_transposed_weight(draft: Draft, node: Node, weight: Node) -> None:
    """The weight-only form: codes and scales stored as [K, N], groups along K."""
    given = arguments(weight)
    block = given["block"]

    def transposed(name: str) -> Node:
        tensor = draft.tensor(given[name])
        assert tensor is not None
        turned = tensor.t().contiguous() if tensor.dim() == 2 else tensor
        return draft.constant(f"{given[name].target}.transposed", turned, before=node)

    turned = draft.call(
        qc.dequantize.default,
        *(transposed(name) for name in ("q", "scale", "zero_point")),
        given["format"],
        0 if block else 1,
        block,
        before=node,
        origin=node,
    )
    source, _, bias = node.args
    node.target = aten.matmul.default
    node.args = (source, turned)
    draft.infer(node)
    add_behind(draft, node, bias)


def add_behind(draft: Draft, node: Node, bias: Any) -> None:
    if not isinstance(bias, Node):
        return
    total = draft.call(aten.add.Tensor, node, bias, before=node.next, origin=node)
    draft.replace(node, total, only=[user for user in node.users if user is not total])
