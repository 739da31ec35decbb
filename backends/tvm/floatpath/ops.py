"""The table of ops that TVM's float path computes; what is not in it stays with torch.

A new op is a row: what it computes as an expression, and nothing of how.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tvm import te, tirx

from qcompiler.backends.tvm.floatpath import contractions, elementwise, movement, reductions
from qcompiler.backends.tvm.floatpath.elementwise import FUNCTION, binary, relu, sigmoid, unary
from qcompiler.backends.tvm.floatpath.values import Given, Value, number

aten = torch.ops.aten

ELEMENTWISE: Mapping[Any, Callable[[Given], Value | None]] = {
    aten.add.Tensor: binary(lambda a, b: a + b),
    aten.sub.Tensor: binary(lambda a, b: a - b),
    aten.mul.Tensor: binary(lambda a, b: a * b),
    aten.div.Tensor: binary(lambda a, b: a / b),
    aten.maximum.default: binary(elementwise.larger),
    aten.minimum.default: binary(elementwise.smaller),
    aten.rsub.Scalar: elementwise.reversed_subtract,
    aten.lerp.Scalar: elementwise.lerp,
    aten.relu.default: unary(relu, reads=2),
    aten.neg.default: unary(lambda f, x: -x),
    aten.abs.default: unary(lambda f, x: tirx.abs(x)),
    aten.square.default: unary(lambda f, x: x * x, reads=2),
    aten.sqrt.default: unary(lambda f, x: tirx.sqrt(x)),
    aten.rsqrt.default: unary(lambda f, x: number(1.0) / tirx.sqrt(x)),
    aten.reciprocal.default: unary(lambda f, x: number(1.0) / x),
    aten.exp.default: unary(lambda f, x: f.exp(x), FUNCTION),
    aten.tanh.default: unary(lambda f, x: f.tanh(x), FUNCTION),
    aten.erf.default: unary(lambda f, x: f.erf(x), FUNCTION),
    aten.sigmoid.default: unary(sigmoid, FUNCTION),
    aten.silu.default: unary(lambda f, x: x * sigmoid(f, x), FUNCTION, reads=2),
    aten.hardsigmoid.default: unary(lambda f, x: gate(x), 3),
    aten.hardswish.default: unary(lambda f, x: x * gate(x), 4, reads=2),
    aten.gelu.default: elementwise.gelu,
    aten.elu.default: elementwise.elu,
    aten.leaky_relu.default: elementwise.leaky_relu,
    aten.prelu.default: elementwise.prelu,
    aten.clamp.default: elementwise.clamp,
    aten.clamp_min.default: elementwise.clamp,
    aten.clamp_max.default: elementwise.clamp,
    aten.hardtanh.default: elementwise.clamp,
    aten.pow.Tensor_Scalar: elementwise.power,
    aten.batch_norm.default: elementwise.batch_norm,
}


def gate(x: Any) -> Any:
    """min(max(x + 3, 0), 6) / 6"""
    return elementwise.cut(x + number(3.0), 0.0, 6.0) * number(1 / 6)


MOVEMENT: Mapping[Any, Callable[[Given], Value | None]] = {
    aten.expand.default: movement.expand,
    aten.permute.default: movement.permute,
    aten.transpose.int: movement.transpose,
    aten.t.default: movement.transpose,
    aten.unsqueeze.default: movement.unsqueeze,
    aten.squeeze.dim: movement.squeeze,
    aten.squeeze.dims: movement.squeeze,
    aten.select.int: movement.select,
    aten.slice.Tensor: movement.slice_of,
}

COPIES: Mapping[Any, Callable[[Given], Value | None]] = {
    aten.flip.default: movement.flip,
    aten.cat.default: movement.cat,
    aten.stack.default: movement.stack,
    aten.constant_pad_nd.default: movement.constant_pad,
    aten.pad.default: movement.pad,
    aten.upsample_nearest1d.vec: movement.nearest,
    aten.upsample_nearest2d.vec: movement.nearest,
    aten.upsample_nearest3d.vec: movement.nearest,
    aten.upsample_linear1d.vec: movement.linear,
    aten.upsample_bilinear2d.vec: movement.linear,
}

REDUCTIONS: Mapping[Any, Callable[[Given], Value | None]] = {
    aten.sum.default: reductions.total(lambda f: te.sum),
    aten.sum.dim_IntList: reductions.total(lambda f: te.sum),
    aten.amax.default: reductions.total(lambda f: f.largest),
    aten.amin.default: reductions.total(lambda f: f.smallest),
    aten.max.default: reductions.total(lambda f: f.largest),
    aten.min.default: reductions.total(lambda f: f.smallest),
    aten.mean.default: reductions.mean,
    aten.mean.dim: reductions.mean,
    aten.var.dim: reductions.variance(root=False),
    aten.std.dim: reductions.variance(root=True),
    aten.var.correction: reductions.variance(root=False),
    aten.std.correction: reductions.variance(root=True),
    aten.linalg_vector_norm.default: reductions.vector_norm,
    aten.softmax.int: reductions.softmax,
    aten.log_softmax.int: reductions.log_softmax,
    aten.layer_norm.default: reductions.last_axes(centered=True),
    aten.rms_norm.default: reductions.last_axes(centered=False),
    aten.group_norm.default: reductions.group_norm,
    aten.instance_norm.default: reductions.instance_norm,
}

CONTRACTIONS: Mapping[Any, Callable[[Given], Value | None]] = {
    aten.matmul.default: contractions.matmul,
    aten.bmm.default: contractions.matmul,
    aten.mm.default: contractions.matmul,
    aten.linear.default: contractions.linear,
    aten.addmm.default: contractions.added,
    aten.baddbmm.default: contractions.added,
    aten.conv1d.default: contractions.conv,
    aten.conv1d.padding: contractions.conv,
    aten.conv2d.default: contractions.conv,
    aten.conv2d.padding: contractions.conv,
    aten.conv3d.default: contractions.conv,
    aten.conv3d.padding: contractions.conv,
    aten.conv_transpose1d.default: contractions.transposed,
    aten.conv_transpose2d.input: contractions.transposed,
    aten.conv_transpose3d.input: contractions.transposed,
}

OPS = {**ELEMENTWISE, **MOVEMENT, **COPIES, **REDUCTIONS, **CONTRACTIONS}


def products(target: Any, given: Mapping[str, tuple[int, ...]], result: tuple[int, ...]) -> int:
    """Multiply-accumulates of one op; `given`: shapes of its tensors by name."""
    if target not in CONTRACTIONS:
        return 0
    if "weight" in given:
        weight = given["weight"]
        turned = "transpose" in str(target)
        places = math.prod(given["input"]) if turned else math.prod(result)
        return places * math.prod(weight[1:])
    first = next(given[name] for name in ("mat1", "batch1", "self") if name in given)
    return math.prod(result) * first[-1]
