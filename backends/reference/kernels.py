"""Integer kernels, as formulas: what every engine must compute (see docs/numerics.md).

    acc  = sum_k (qx[k] - z_x) (qw[k,c] - z_w[c]) + qb[c]            int32
    q_y  = sat(rne(float32(acc) * m[c]) + z_y)                  m[c] = float32(float32(s_x s_w[c]) / s_y)
    q_y  = sat(rne(fma(q_r, m_r, fma(float32(acc), m[c], -z_r m_r))) + z_y)     a residual r, m_r = s_r / s_y
    y    = float32(acc) * float32(s_x s_w[c])                   where a linear returns float,
    y    = fma(float32(acc), float32(s_x s_w[c]), a)            and adds another float to it,
    y    = float32(acc) float32(s_x s_w[c]) + b[c]              or a bias of floats, where ranges are taken
    y    = fma(float32(acc), float32(s_x s_w[c]), b[c] + a)     at run time; or both
    y    = (float32(acc) s_x[r]) s_w[c] + b[c]                  where each row r has a range of its own
    y    = fma(acc_g, s_x[r,g] s_w[c,g], y) for g = 0, 1, ..    where each block g of it has; then + b[c]

Codes of FP8 are numbers, and are summed as integers are: exactly, but for what float64 rounds.

Sums are formed in float64, which holds every int32 accumulator exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.numerics import IntFormat, parse_format


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """A quantized tensor: x = scale * (values - zero_point), one scale per tensor or per index of `axis`.

    dtype: of the floats that it stands for, float32 if None.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    format: str
    axis: int | None = None
    block: int = 0
    dtype: torch.dtype | None = None

    @property
    def is_by_row(self) -> bool:
        """Whether each row of the last axis has a scale of its own."""
        return self.axis == -1 and self.block == self.values.shape[-1]

    @property
    def centered(self) -> Tensor:
        """values - zero_point in float64, exact."""
        zero = self.zero_point.double()
        if self.is_by_row:
            return self.values.double() - zero
        shape = [1] * self.values.dim()
        if zero.dim():
            shape[self.axis or 0] = -1
        return self.values.double() - zero.reshape(shape)

    def decoded(self) -> Tensor:
        """The float values."""
        result: Tensor = torch.ops.qcompiler.dequantize.default(
            self.values, self.scale, self.zero_point, self.format, self.axis, self.block, dtype=self.dtype
        )
        return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """Scale, zero point and format of the codes that a kernel returns."""

    scale: Tensor
    zero_point: Tensor
    format: str

    def encode(self, steps: Tensor) -> Tensor:
        """sat(rne(steps) + z), where `steps` is x / s."""
        return self.saturate(torch.round(steps).double() + self.zero_point.double())

    def saturate(self, codes: Tensor) -> Tensor:
        """sat(rne(codes)), the zero point already added."""
        bounds = parse_format(self.format)
        assert isinstance(bounds, IntFormat)
        return torch.round(codes).clamp(bounds.qmin, bounds.qmax).to(self.zero_point.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One region to compute: operands as codes, weight and bias, literal arguments, and the output wanted."""

    operands: Sequence[Codes]
    weight: Codes | None
    bias: Codes | Tensor | None
    arguments: Mapping[str, Any]
    op: Callable[..., Any]
    output: Output | None
    residual: Codes | None = None
    addend: Tensor | None = None


def along_channels(vector: Tensor, result: Tensor, axis: int) -> Tensor:
    shape = [1] * result.dim()
    shape[axis] = -1
    return vector.reshape(shape)


def finish(call: Call, accumulator: Tensor, axis: int) -> Tensor:
    """Add the bias, then requantize or scale to float."""
    assert call.weight is not None
    if call.operands[0].is_by_row:
        steps = along_channels(call.weight.scale, accumulator, axis)
        result = accumulator.float() * call.operands[0].scale * steps
        return result + call.bias.float() if isinstance(call.bias, Tensor) else result
    scale = call.operands[0].scale.float() * call.weight.scale.float()
    if isinstance(call.bias, Codes):
        accumulator = accumulator + along_channels(call.bias.values.double(), accumulator, axis)
    if call.output is None and call.addend is not None:
        added = call.addend
        if isinstance(call.bias, Tensor):
            added = along_channels(call.bias, accumulator, axis) + added
        return multiply_add(accumulator.float(), along_channels(scale, accumulator, axis), added)
    if call.output is None:
        result = accumulator.float() * along_channels(scale, accumulator, axis)
        return result + along_channels(call.bias, result, axis) if isinstance(call.bias, Tensor) else result
    multiplier = along_channels(scale / call.output.scale.float(), accumulator, axis)
    if call.residual is None:
        return call.output.encode(accumulator.float() * multiplier)
    ratio = call.residual.scale.float() / call.output.scale.float()
    offset = -call.residual.zero_point.float() * ratio
    steps = multiply_add(accumulator.float(), multiplier, offset)
    return call.output.encode(multiply_add(call.residual.values.float(), ratio, steps))


def convolution(call: Call) -> Tensor:
    assert call.weight is not None
    given = call.arguments
    accumulator = call.op(
        call.operands[0].centered, call.weight.centered, None,
        given["stride"], given["padding"], given["dilation"], given["groups"],
    )  # fmt: skip
    return finish(call, accumulator, axis=1)


def linear(call: Call) -> Tensor:
    assert call.weight is not None
    if call.weight.block:
        return linear_by_blocks(call, call.operands[0], call.weight)
    return finish(call, F.linear(call.operands[0].centered, call.weight.centered), axis=-1)


def linear_by_blocks(call: Call, x: Codes, weight: Codes) -> Tensor:
    """Codes without zero points, with scales [..., blocks] and [out, blocks] along what is summed over."""
    y = torch.zeros(*x.values.shape[:-1], len(weight.values))
    parts = (torch.split(codes.values.double(), weight.block, -1) for codes in (x, weight))
    for g, (p, q) in enumerate(zip(*parts, strict=True)):
        y = multiply_add(F.linear(p, q).float(), x.scale[..., g, None] * weight.scale[:, g], y)
    return y + call.bias.float() if isinstance(call.bias, Tensor) else y


def weight_only_linear(
    x: Tensor, weight: Codes, bias: Tensor | None, *, bits: int | None, block: int
) -> Tensor:
    """A float x with weights of few bits: x is rounded per row and block of its last axis to signed codes.

        s_x = max |x| / (2^(bits-1) - 1)        q = sat(rne(x / s_x))
        S_b = sum over block b of q (u - z)                     exact
        y   = fma(S_b, s_x s_w, y)  for b = 0, 1, ..            then y + bias
        y   = fma(s_w, fma(S_b, s_x, ..), bias or 0)            where a column of the weight has one scale

    Every step is float32 and rounded once. Without bits x stays as it is: q = x, s_x = 1.
    """
    rows = F.pad(x, (0, -x.shape[-1] % block)).reshape(*x.shape[:-1], -1, block)
    codes, scale = (rows, torch.ones(())) if bits is None else rounded_rows(rows, bits)
    columns = centered_blocks(weight, block)
    steps = weight.scale.float()
    y = torch.zeros(*x.shape[:-1], len(columns))
    for b in range(columns.shape[1]):
        total = F.linear(codes[..., b, :].double(), columns[:, b]).float()
        step = scale[..., b, :] if scale.dim() else scale
        y = multiply_add(total, step * (steps[:, b] if weight.block else 1.0), y)
    if not weight.block:
        return multiply_add(y, steps, torch.zeros(()) if bias is None else bias)
    return y if bias is None else y + bias


def rounded_rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Signed codes of [..., blocks, block], and the scale of each block."""
    largest = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(-1, keepdim=True) / largest
    codes = torch.round(rows / scale.where(scale > 0, torch.ones_like(scale))).clamp(-largest - 1, largest)
    return codes, scale


def centered_blocks(weight: Codes, block: int) -> Tensor:
    """u - z of a weight [out, in] in float64, as [out, blocks, block] with zeros behind the last input."""
    zero = weight.zero_point.double().reshape(len(weight.values), -1)
    if weight.block:
        zero = zero.repeat_interleave(block, 1)[:, : weight.values.shape[1]]
    centered = weight.values.double() - zero
    return F.pad(centered, (0, -centered.shape[1] % block)).reshape(len(centered), -1, block)


def add(call: Call) -> Tensor:
    """sat(rne(a' (s_a / s_y) + b' (s_b / s_y)) + z_y)

    Evaluated as ONNX Runtime's vector kernel does, in float32 with one rounding per multiply-add:
    fixed = z_y - (r_a z_a + r_b z_b), then fixed + b r_b, then + a r_a, with r = s / s_y.
    """
    output = wanted(call)
    first, second = call.operands
    ratio_a, ratio_b = (x.scale.float() / output.scale.float() for x in call.operands)
    zero_a, zero_b = (x.zero_point.float() for x in call.operands)
    fixed = output.zero_point.float() - multiply_add(zero_a, ratio_a, ratio_b * zero_b)
    total = multiply_add(second.values.float(), ratio_b, fixed)
    return output.saturate(multiply_add(first.values.float(), ratio_a, total))


def multiply_add(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x y + z of float32 values with a single rounding; float64 holds the product exactly."""
    return (x.double() * y.double() + z.double()).float()


def multiply(call: Call) -> Tensor:
    """sat(rne(a' s_a (b' s_b) / s_y) + z_y)"""
    output = wanted(call)
    first, second = (x.centered.float() * x.scale.float() for x in call.operands)
    return output.encode(first * second / output.scale.float())


def global_average(call: Call) -> Tensor:
    """sat(rne(sum(x') float32(s_x / (s_y N))) + z_y)"""
    output, (x,) = wanted(call), call.operands
    space = tuple(range(2, x.values.dim()))
    count = x.values[0, 0].numel()
    multiplier = (x.scale.double() / (output.scale.double() * count)).float()
    return output.encode(x.centered.sum(space, keepdim=True).float() * multiplier)


def average(call: Call) -> Tensor:
    output, (x,) = wanted(call), call.operands
    literals = {name: value for name, value in call.arguments.items() if name != "self"}
    mean = call.op(x.centered, *literals.values()).float()
    return output.encode(mean * (x.scale.float() / output.scale.float()))


def maximum(call: Call) -> Tensor:
    (x,) = call.operands
    literals = {name: value for name, value in call.arguments.items() if name != "self"}
    largest: Tensor = call.op(x.values.double(), *literals.values())
    return largest.to(x.values.dtype)


def concatenate(call: Call) -> Tensor:
    """Every input through its 256-entry table Q_y(D_x(q))."""
    output = wanted(call)
    parts = [output.encode(x.decoded() / output.scale) for x in call.operands]
    return torch.cat(parts, int(call.arguments["dim"]))


def unary(call: Call) -> Tensor:
    """The 256-entry table Q_y(f(D_x(q))) of the float function."""
    output, (x,) = wanted(call), call.operands
    literals = {name: value for name, value in call.arguments.items() if name != "self"}
    return output.encode(call.op(x.decoded(), **literals) / output.scale)


def wanted(call: Call) -> Output:
    assert call.output is not None, "this kernel returns codes only"
    return call.output
