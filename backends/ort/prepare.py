"""The forms that ONNX Runtime's kernels are good at; each is exact, and none changes what is computed.

linear(dq(q[.., K]), dq(w), b)   -->  view(linear(dq(view(q, [-1, K])), ...))     QGemm takes 2-D
linear(dq(q), dq(w), b)          -->  integer_linear(q, w^T, b), float result     MatMulIntegerToFloat
linear(x, dq(w), b)              -->  matmul(x, dq(w^T)) + b                      MatMulNBits: [K, N]
attention of heads               -->  attention by token                          Attention
rotary(by head(x))               -->  by head(rotary by token(x))                 RotaryEmbedding
conv of few channels, strided    -->  conv of many, dense                         QLinearConv
move(q8)                         -->  q(move(dq(q8)))                             FP8 codes
avg_pool(x, 0, ceil, include)    -->  avg_pool(x, 0, ceil)                        divides by what lies inside
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.ort.requirements import ATTENTION_OPSET
from qcompiler.backends.ort.stem import pays, use_space_to_depth
from qcompiler.errors import LoweringError
from qcompiler.ir import Draft, Graph, arguments, label, spec, value
from qcompiler.ir.ops import FLOAT8
from qcompiler.passes.duplicates import merge_duplicates
from qcompiler.passes.heads import is_attention, use_attention
from qcompiler.passes.materialize import insert_bias
from qcompiler.passes.turned import turn_by_token
from qcompiler.passes.weights import MOST_BIAS
from qcompiler.rewrite import Trait, has

aten = torch.ops.aten
qc = torch.ops.qcompiler


def prepare(graph: Graph, *, opset: int, portable: bool) -> Graph:
    """Rewrite every linear and attention into the form of its kernel; names of linears are kept.

    What several of them read in another form (an input reshaped, a mask spread) is made once. A portable
    graph keeps its static linears between quantize and dequantize, as other engines read them.
    """
    draft = Draft(graph)
    for node in draft.nodes:
        if node.target is aten.avg_pool2d.default:
            clip_windows(draft, node)
        elif computes_on_float8(node):
            decode_around(draft, node)
        elif not portable and pays(node):
            use_space_to_depth(draft, node)
        elif node.target is qc.rotary.default and opset >= ATTENTION_OPSET:
            turn_by_token(draft, node)
        elif is_attention(node) and opset >= ATTENTION_OPSET:
            use_attention(draft, node)
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
        elif is_dynamic(source) or (not portable and not returns_codes(node)):
            use_integer_linear(draft, node, source, weight)
        else:
            use_integer_bias(draft, node, source, weight)
            if len(rank_of(node)) > 2:
                flatten(draft, node, source)
    return merge_duplicates(draft.finish())


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


def flatten(draft: Draft, node: Node, source: Node) -> None:
    """Run a linear on [rows, K]."""
    given = arguments(source)
    shape = rank_of(node)
    rows = draft.call(aten.view.default, given["q"], [-1, rank_of(source)[-1]], before=node, origin=source)
    decoded = draft.call(
        qc.dequantize.default, rows, given["scale"], given["zero_point"], given["format"], None, 0,
        before=node, origin=source,
    )  # fmt: skip
    node.args = (decoded, *node.args[1:])
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


def is_dynamic(source: Node) -> bool:
    """Whether the range of some codes is taken at run time."""
    return bool(arguments(source)["scale"].op != "get_attr")


def returns_codes(linear: Node) -> bool:
    """Whether a linear's only reader, perhaps behind a clamp that its kernel absorbs, is a quantize."""
    node = linear
    while len(node.users) == 1:
        (node,) = node.users
        if node.target is qc.quantize.default:
            return True
        if not has(node, Trait.CLAMPS):
            return False
    return False


def use_integer_linear(draft: Draft, node: Node, source: Node, weight: Node) -> None:
    """Codes in, float out: no reshape to two dimensions, and the bias added in float."""
    inputs, filters = arguments(source), arguments(weight)
    codes = draft.tensor(filters["q"])
    assert codes is not None
    transposed = draft.constant(f"{filters['q'].target}.transposed", codes.t().contiguous(), before=node)
    bias = node.args[2]
    node.target = qc.integer_linear.default
    node.args = (inputs["q"], inputs["scale"], inputs["zero_point"], transposed, filters["scale"], bias)
    draft.infer(node)


def use_integer_bias(draft: Draft, node: Node, source: Node, weight: Node) -> None:
    """Between quantize and dequantize a float bias would keep the whole linear in float."""
    inputs, filters = arguments(source), arguments(weight)
    bias, scale = draft.tensor(arguments(node)["bias"]), draft.tensor(inputs["scale"])
    steps = draft.tensor(filters["scale"])
    if bias is None or scale is None or steps is None or not fits(bias, scale * steps):
        return
    insert_bias(draft, node, bias, float(scale), steps)


def fits(bias: Tensor, step: Tensor) -> bool:
    """Whether a bias in these steps leaves a 32-bit accumulator room for the products."""
    return bool((bias.abs().double() / step.double()).max() <= MOST_BIAS)


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
