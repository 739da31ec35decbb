"""What our kernels of floats compute, in float64, and how far from it they promise to be.

y = kernel(x)   -->   exact, bound        |y - exact| <= bound, number by number; 0 where y is the reference's
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from qcompiler.ir import arguments
from qcompiler.ir.attention import attended, rotated

aten = torch.ops.aten
qc = torch.ops.qcompiler
UNIT = 2.0**-24  # of rounding to float32
LEAST = 2.0**-149  # of numbers above zero
Read = Callable[[Node], Tensor]
Bounded = tuple[Tensor, Tensor]


def norm(node: Node, read: Read) -> Bounded:
    """As `kernels/norm.py` states it."""
    given = arguments(node)
    x, axes = read(given["input"]).double(), given["normalized_shape"]
    gain, bias = (None if given.get(key) is None else read(given[key]).double() for key in ("weight", "bias"))
    centered = node.target is aten.layer_norm.default
    epsilon = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]
    exact = F.layer_norm(x, axes, gain, bias, epsilon) if centered else F.rms_norm(x, axes, gain, epsilon)
    around = x - x.mean(-1, keepdim=True) if centered else x
    ratio = (around.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    size = (1.0 if gain is None else gain.abs()) * (1 + x.abs().amax(-1, keepdim=True) * ratio)
    return exact, 4 * UNIT * (size if bias is None else size + bias.abs())


def activation(node: Node, read: Read) -> Bounded:
    """GELU, or what SiLU gates, as `kernels/activation.py` states it; the product is rounded once more."""
    inner, factor = node, None
    for a, b in itertools.permutations(node.args, 2) if node.target is aten.mul.Tensor else ():
        if isinstance(a, Node) and isinstance(b, Node) and a.target is aten.silu.default:
            inner, factor = a, read(b).double()
    given = arguments(inner)
    x = read(given["self"]).double()
    silu = inner is not node
    exact = F.silu(x) if silu else F.gelu(x, approximate=given["approximate"])
    far = 2.0**-21 * x.abs() + (0.0 if silu or given["approximate"] == "tanh" else 2.6e-5)
    if factor is None:
        return exact, far
    return exact * factor, far * factor.abs() + UNIT * (exact * factor).abs() + LEAST


def rotary(node: Node, read: Read) -> Bounded:
    """A product and a sum are rounded, and nothing else."""
    given = arguments(node)
    x, cos, sin = (read(given[name]).double() for name in ("x", "cos", "sin"))
    straight, crossed = (
        rotated(x.abs(), *tables, given["heads"]).abs()
        for tables in ((cos.abs(), torch.zeros_like(sin)), (torch.zeros_like(cos), sin.abs()))
    )
    return rotated(x, cos, sin, given["heads"]), 2 * UNIT * (straight + crossed) + LEAST


def attention(node: Node, read: Read) -> Bounded:
    """By token, as `kernels/float_attention.py` states it."""
    given = arguments(node)
    q, k, v = (read(given[name]).double() for name in ("q", "k", "v"))
    options = {name: given[name] for name in ("heads", "kv_heads", "causal", "scale")}
    exact = attended(q, k, v, None, **options)
    width, shared = q.shape[-1] // given["heads"], given["heads"] // given["kv_heads"]
    queries, keys = (x.abs().view(*x.shape[:2], -1, width).transpose(1, 2) for x in (q, k))
    largest = given["scale"] * (queries @ keys.repeat_interleave(shared, 1).mT).max()
    steps = 2 * (width + 12) * largest + 1.1 * k.shape[1] + 20
    return exact, (UNIT * v.abs().max() * steps).expand_as(exact)


BOUNDS: Mapping[Any, Callable[[Node, Read], Bounded]] = {
    aten.layer_norm.default: norm,
    aten.rms_norm.default: norm,
    aten.mul.Tensor: activation,
    aten.gelu.default: activation,
    qc.rotary.default: rotary,
    qc.attention.default: attention,
}
