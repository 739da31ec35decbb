"""What computed a linear against the reference, on the inputs that it was given.

Sums of int8 codes are exact and the rest is float32 in the order written, so results have equal bits. Where
they need not, a bound is derived, and what is beyond it counts; codes that are handed on lie between those of
the two ends. S = sum_k |a_k b_k|, S' = sum_k |x_k w_k|:

    fp8, on a CPU          K 2^-24 S                    a sum of float32 in any order
    fp8 fast, on CUDA      K / 32 2^-13 S               32 products at a time, of which 14 bits stay
    fp8 promote128         4 2^-13 S + K 2^-24 S        (DeepSeek-V3, arXiv 2412.19437, section 3.3.2)
    fp8 in blocks          the same
    floats                 sum_k |x_k - a_k s| |w_k| + (K 2^-24 + 2 u) S'       the rounding that was left out
    few bits, on a CPU     (K + 3 K / G + 2) 2^-24 S'
    few bits, on CUDA      (2 K + 3 K / G + 2) 2^-23 S'

With few bits x_k (u_k - z) is exact, each sum rounds or, on tensor cores, cuts off behind float32's last bit:
once for a product, and once more for those that are aligned to the largest beside them (Fasi et al. 2021,
"Numerical behavior of NVIDIA tensor cores"). A group of G rounds once for its scale and once where it is
added, the reference once for its sum; what is left is the first and last sum of parts. A gate and what it
multiplies have such a bound each: see `error` for their product. GELU and SiLU enlarge an error by 1.13 at
most, and are themselves good to |y| 2^-21. u is half a unit of the result's type, in which steps behind the
sums, and weights that are decoded, are rounded; our kernels of few bits keep float32 until the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.base import NodeDistance
from qcompiler.backends.reference import coded, compute_region
from qcompiler.backends.reference.kernels import Codes, weight_only_linear
from qcompiler.backends.triton.engine.layer import Layer
from qcompiler.backends.triton.engine.lower import Call
from qcompiler.backends.triton.engine.weights import tensor
from qcompiler.backends.triton.layouts import layout_named
from qcompiler.backends.triton.ops.linear import ACTIVATIONS, LIGHT
from qcompiler.backends.triton.ops.weight_only import activated
from qcompiler.ir import Graph, arguments
from qcompiler.numerics import PerGroup
from qcompiler.numerics.block_codes import decoded

STEEPEST = 1.13  # the largest derivative of GELU, 1.129, and of SiLU, 1.100
TENSOR_CORES = 2.0**-13
FLOAT32 = 2.0**-24
EXPONENTIAL = 2.0**-21


def distance(call: Call, values: Mapping[Node, Any], graph: Graph) -> NodeDistance:
    """`values` are those of the lowered graph; `graph` is the quantized one."""
    layer, found = call.layer, values[call.node].cpu()
    device, x = values[call.node].device, values[call.x].cpu()
    bias, residual = (None if node is None else values[node].cpu() for node in (call.bias, call.residual))
    read, count = [operands(call, each, x, graph) for each in layer.linears], len(layer.linears)
    biases: Sequence[Tensor | None] = [None] * count if bias is None else bias.chunk(count)
    each_sums = [
        sums_of(each, graph, *given, own)
        for each, given, own in zip(layer.linears, read, biases, strict=True)
    ]
    sums = torch.cat(each_sums, -1)
    y = activated(sums, layer.activation, layer.problem.gated)
    y = y if residual is None else y + residual.float().reshape(y.shape)
    allowed = torch.zeros(())
    if not has_equal_bits(call, device):
        limits = torch.cat([bound(call, x, *given, device) for given in read], -1)
        allowed = error(call, sums, limits, y)
    if call.hands_codes:
        apart = steps = beyond_codes(layer, found, y, allowed, graph)
    else:
        wanted = y.to(layer.dtype)
        apart = gap(found, wanted.reshape(found.shape))
        beyond = (apart - allowed.expand(y.shape).reshape(apart.shape)).clamp_min(0)
        apart = torch.where(apart == 0, 0.0, beyond)  # where both are NaN the bound is, too
        steps = apart / (finite_maximum(wanted) / 127)
    return NodeDistance(
        node=layer.anchor.name, kernel=call.kernel, max_lsb=largest(steps),
        changed=float((apart > 0).double().mean()),
    )  # fmt: skip


def sums_of(
    linear: Layer, graph: Graph, operand: Codes | Tensor, weight: Codes, bias: Tensor | None
) -> Tensor:
    """What the reference has for a linear alone, float32 [..., N]."""
    if isinstance(operand, Tensor):
        group = layout_named(linear.problem.format).group
        return weight_only_linear(operand, weight, bias, bits=None, block=group)
    return compute_region(linear.region, graph, (operand, weight, bias), {}, None).float()


def error(call: Call, sums: Tensor, limits: Tensor, y: Tensor) -> Tensor:
    """How far a result may be from y, [..., N] in float64, where sums may be off by their limits e.

        e_a = 1.13 (e_g + (v + 2^-21) |g|)                                 behind the activation a of g
        e_p = |a| e_b + |b| e_a + e_a e_b + v (|a| + e_a) (|b| + e_b)      behind its product with b

    v is half a unit of the type in which steps are rounded. Through a gate a and b are rounded by themselves,
    which adds v |a| and v |b|. 3 u |y| are for the activation, or a sum, for the result, and the reference.
    """
    layer, is_gated = call.layer, call.layer.problem.gated
    u = FLOAT32 if call.hands_codes else torch.finfo(layer.dtype).eps / 2
    v = FLOAT32 if layer.is_weight_only and call.by.reads_codes else u
    first, first_limit = (each.chunk(1 + is_gated, -1)[0] for each in (sums, limits))
    off = STEEPEST * (first_limit + (v + EXPONENTIAL) * first.abs())
    if is_gated:
        second, second_limit = (each.chunk(2, -1)[1] for each in (sums, limits))
        a, b = (each.double().abs() for each in (ACTIVATIONS[layer.activation](first), second))
        e_a, e_b = off + v * a, second_limit + v * b
        off = a * e_b + b * e_a + e_a * e_b + v * (a + e_a) * (b + e_b)
    return off + 3 * u * y.abs()


def beyond_codes(layer: Layer, found: Tensor, y: Tensor, allowed: Tensor, graph: Graph) -> Tensor:
    """By how much codes [M, N'] lie outside those of y - allowed and y + allowed."""
    low, high = (
        calibrated(layer.onward, end.float(), graph).values.double() for end in (y - allowed, y + allowed)
    )
    codes = found[:, : y.shape[-1]].double().reshape(y.shape)
    return (low - codes).clamp_min(0) + (codes - high).clamp_min(0)


def calibrated(made: Node | None, x: Tensor, graph: Graph, codes: Tensor | None = None) -> Codes:
    """What a `quantize` of the graph makes of x, or codes that are there already."""
    assert made is not None
    given = arguments(made)
    scale, zero = (tensor(given[name], graph) for name in ("scale", "zero_point"))
    if codes is None:
        codes = torch.ops.qcompiler.quantize(x, scale, zero, given["format"])
    return Codes(values=codes, scale=scale, zero_point=zero, format=given["format"])


def operands(call: Call, layer: Layer, x: Tensor, graph: Graph) -> tuple[Codes | Tensor, Codes]:
    """Codes of the input, made by the reference, or x where it is read as it is; and codes of the weight."""
    weight = coded(layer.weight, lambda node: tensor(node, graph))
    if layer.is_weight_only:
        return x, weight
    if layer.coded is not None:
        given = x[:, : weight.values.shape[1]] if call.takes_codes else None
        return calibrated(layer.coded, x, graph, given), weight
    format, block = arguments(layer.region.operands[0])["format"], weight.block
    values, scale, zero = torch.ops.qcompiler.quantize_rows(x, format, block)
    operand = Codes(
        values=values, scale=scale, zero_point=zero, format=format, axis=-1, block=block or x.shape[-1]
    )
    return operand, weight


def has_equal_bits(call: Call, device: torch.device) -> bool:
    is_exact = call.by.reads_codes and call.layer.problem.format == "int8"
    return is_exact and (device.type == "cpu" or call.layer.activation in LIGHT)


def bound(call: Call, x: Tensor, operand: Codes | Tensor, weight: Codes, device: torch.device) -> Tensor:
    """How far what a linear alone returns may be from the reference, [..., N] in float64."""
    depth = weight.values.shape[1]
    w = replace(weight, dtype=torch.float32).decoded().double().abs().t()
    a = operand.double() if isinstance(operand, Tensor) else exact(operand)
    if not call.by.reads_codes:
        half = torch.finfo(call.layer.dtype).eps / 2
        return (x.double() - a).abs() @ w + (depth * FLOAT32 + 2 * half) * (x.double().abs() @ w)
    if call.layer.is_weight_only:
        groups = depth / layout_named(call.layer.problem.format).group
        inside = depth * FLOAT32 if device.type == "cpu" else 4 * depth * FLOAT32
        after = (3 * groups + 2) * FLOAT32 * (1 if device.type == "cpu" else 2)
        return (inside + after) * (a.abs() @ w)
    if call.layer.problem.format == "int8":
        return torch.zeros(len(weight.values))
    promoted = bool(weight.block) or call.by.more.get("accumulation") == "promote128"
    inside = 0.0 if device.type == "cpu" else TENSOR_CORES * (4 if promoted else depth / 32)
    return (inside + depth * FLOAT32) * (a.abs() @ w)


def exact(codes: Codes) -> Tensor:
    """q s in float64: all by one scale, or rows, or blocks of them."""
    if not codes.block:
        return codes.values.double() * codes.scale.double()
    return decoded(codes.values, codes.scale, PerGroup(axis=-1, size=codes.block))


def gap(found: Tensor, wanted: Tensor) -> Tensor:
    """|found - wanted|, 0 where both are NaN or the same infinity."""
    one, other = found.double(), wanted.double()
    same = (one == other) | (one.isnan() & other.isnan())
    return torch.where(same, 0.0, (one - other).abs())


def finite_maximum(x: Tensor) -> float:
    return max(float(x.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if x.numel() else 0.0, 1e-30)


def largest(steps: Tensor) -> float:
    """Infinite where a NaN is on one side alone."""
    return float(steps.nan_to_num(torch.inf).max()) if steps.numel() else 0.0
