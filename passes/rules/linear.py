"""Constants that follow or precede a contraction move into its weight and bias.

    bn(conv(x, w, b))      -->  conv(x, w k, (b - mean) k + beta)      k = gamma / sqrt(var + eps)
    conv(x, w, b) * c      -->  conv(x, w c, b c)
    conv(x, w, b) + c      -->  conv(x, w, b + c)
    conv(pad(x), padding)  -->  conv(x, padding + pad)
    x @ w + b              -->  linear(x, w^T, b)
    linear(x, w, b)[i]     -->  linear(x[i], w, b)                                    one row of many

Each is exact in real arithmetic. The constants on the right side are folded afterwards.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from qcompiler.ir import Draft, spec
from qcompiler.passes.rules.conditions import both, constant, per_channel, rank
from qcompiler.passes.rules.patches import PATCHES
from qcompiler.passes.rules.sample import choose, normal, positive, several
from qcompiler.rewrite import Match, Rule, reals

aten = torch.ops.aten
Ints = list[int]
Maybe = Tensor | None
# Rounding of a sum of about a hundred products, then of one division and one root.
FOLDING = reals(512)


def normalizer(gamma: Maybe, var: Tensor, eps: float) -> Any:
    """gamma / sqrt(var + eps)"""
    inverse = aten.rsqrt.default(var + eps)
    return inverse if gamma is None else gamma * inverse


def along(vector: Any, dims: int, axis: int) -> Any:
    """Shape a vector so that it varies along one axis of a `dims`-dimensional tensor."""
    shape = [1] * dims
    shape[axis] = -1
    return aten.view.default(vector, shape)


def folded_bias(b: Any, gain: Any, beta: Any, mean: Any) -> Any:
    shifted = -mean if b is None else b - mean
    return shifted * gain if beta is None else shifted * gain + beta


# ---------------------------------------------------------------- batch norm


def conv_functions(dims: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    op = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}[dims].default

    def before(
        x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int,
        gamma: Maybe, beta: Maybe, mean: Tensor, var: Tensor, momentum: float, eps: float,
    ) -> Any:  # fmt: skip
        y = op(x, w, b, stride, padding, dilation, groups)
        return aten._native_batch_norm_legit_no_training.default(y, gamma, beta, mean, var, momentum, eps)[0]

    def after(
        x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int,
        gamma: Maybe, beta: Maybe, mean: Tensor, var: Tensor, momentum: float, eps: float,
    ) -> Any:  # fmt: skip
        gain = normalizer(gamma, var, eps)
        weight = w * along(gain, dims + 2, 0)
        return op(x, weight, folded_bias(b, gain, beta, mean), stride, padding, dilation, groups)

    return before, after


def conv_sample(dims: int) -> Callable[[Generator], tuple[Any, ...]]:
    """x, w, b, stride, padding, dilation, groups of a small random convolution."""

    def sample(g: Generator) -> tuple[Any, ...]:
        groups = choose(g, 1, 2)
        x, w = normal(g, 2, 4, *[9] * dims), normal(g, 6, 4 // groups, *[3] * dims)
        stride, dilation = choose(g, 1, 2), choose(g, 1, 2)
        bias = choose(g, None, normal(g, 6))
        return x, w, bias, [stride] * dims, [choose(g, 0, 1)] * dims, [dilation] * dims, groups

    return sample


def statistics(g: Generator, channels: int) -> tuple[Any, ...]:
    """gamma, beta, mean, var, momentum, eps"""
    gamma, beta = choose(g, (None, None), (positive(g, channels), normal(g, channels)))
    return gamma, beta, normal(g, channels), positive(g, channels), 0.1, 1e-5


def batch_norm_into_conv(dims: int) -> Rule:
    before, after = conv_functions(dims)
    conv = conv_sample(dims)
    return Rule(
        name=f"batch-norm-into-conv{dims}d",
        before=before,
        after=after,
        domain=several(lambda g: (*conv(g), *statistics(g, 6))),
        where=constant("w", "b", "gamma", "beta", "mean", "var"),
        law=FOLDING,
    )


def linear_norm(
    x: Tensor, w: Tensor, b: Maybe,
    gamma: Maybe, beta: Maybe, mean: Tensor, var: Tensor, momentum: float, eps: float,
) -> Any:  # fmt: skip
    y = aten.linear.default(x, w, b)
    return aten._native_batch_norm_legit_no_training.default(y, gamma, beta, mean, var, momentum, eps)[0]


def linear_normed(
    x: Tensor, w: Tensor, b: Maybe,
    gamma: Maybe, beta: Maybe, mean: Tensor, var: Tensor, momentum: float, eps: float,
) -> Any:  # fmt: skip
    gain = normalizer(gamma, var, eps)
    return aten.linear.default(x, w * along(gain, 2, 0), folded_bias(b, gain, beta, mean))


def norm_alone(
    x: Tensor, gamma: Maybe, beta: Maybe, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Any:
    return aten._native_batch_norm_legit_no_training.default(x, gamma, beta, mean, var, momentum, eps)[0]


def affine(
    x: Tensor, gamma: Maybe, beta: Maybe, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Any:
    gain = normalizer(gamma, var, eps)
    shape = [1, -1] + [1] * (len(x.shape) - 2)
    return x * aten.view.default(gain, shape) + aten.view.default(folded_bias(None, gain, beta, mean), shape)


# ---------------------------------------------------------------- scales and biases


def conv_scaled(
    x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int, c: Tensor
) -> Any:
    return aten.mul.Tensor(aten.conv2d.default(x, w, b, stride, padding, dilation, groups), c)


def conv_with_scale(
    x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int, c: Tensor
) -> Any:
    gain = aten.reshape.default(c, [-1, 1, 1, 1])
    bias = None if b is None else b * aten.reshape.default(c, [-1])
    return aten.conv2d.default(x, w * gain, bias, stride, padding, dilation, groups)


def conv_shifted(
    x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int, c: Tensor
) -> Any:
    return aten.add.Tensor(aten.conv2d.default(x, w, b, stride, padding, dilation, groups), c)


def conv_with_shift(
    x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int, c: Tensor
) -> Any:
    flat = aten.reshape.default(c, [-1])
    # A scalar shift still needs one entry per output channel.
    shift = aten.mul.Tensor(aten.new_ones.default(w, [w.shape[0]]), flat)
    return aten.conv2d.default(x, w, shift if b is None else b + shift, stride, padding, dilation, groups)


def conv_times_number(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int, c: float
) -> Any:
    return aten.mul.Tensor(aten.conv2d.default(x, w, b, stride, padding, dilation, groups), c)


def conv_with_number(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int, c: float
) -> Any:
    return aten.conv2d.default(x, w * c, None if b is None else b * c, stride, padding, dilation, groups)


def linear_times_number(x: Tensor, w: Tensor, b: Tensor | None, c: float) -> Any:
    return aten.mul.Tensor(aten.linear.default(x, w, b), c)


def linear_with_number(x: Tensor, w: Tensor, b: Tensor | None, c: float) -> Any:
    return aten.linear.default(x, w * c, None if b is None else b * c)


def linear_scaled(x: Tensor, w: Tensor, b: Maybe, c: Tensor) -> Any:
    return aten.mul.Tensor(aten.linear.default(x, w, b), c)


def linear_with_scale(x: Tensor, w: Tensor, b: Maybe, c: Tensor) -> Any:
    gain = aten.reshape.default(c, [-1])
    return aten.linear.default(x, w * along(gain, 2, 0), None if b is None else b * gain)


def linear_shifted(x: Tensor, w: Tensor, b: Maybe, c: Tensor) -> Any:
    return aten.add.Tensor(aten.linear.default(x, w, b), c)


def linear_with_shift(x: Tensor, w: Tensor, b: Maybe, c: Tensor) -> Any:
    shift = aten.mul.Tensor(aten.new_ones.default(w, [w.shape[0]]), aten.reshape.default(c, [-1]))
    return aten.linear.default(x, w, shift if b is None else b + shift)


def linear_sample(g: Generator) -> tuple[Any, ...]:
    return normal(g, 2, 3, 8), normal(g, 6, 8), choose(g, None, normal(g, 6))


# ---------------------------------------------------------------- padding


def padded_conv(
    x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int, pad: Ints
) -> Any:
    padded = aten.constant_pad_nd.default(x, pad, 0)
    return aten.conv2d.default(padded, w, b, stride, padding, dilation, groups)


def conv_with_padding(
    x: Tensor, w: Tensor, b: Maybe, stride: Ints, padding: Ints, dilation: Ints, groups: int, pad: Ints
) -> Any:
    left, _, top, _ = pad
    return aten.conv2d.default(x, w, b, stride, [padding[0] + top, padding[1] + left], dilation, groups)


def conv_padded_by_word(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, word: str, dilation: Ints, groups: int
) -> Any:
    return aten.conv2d.padding(x, w, b, stride, word, dilation, groups)


def conv_padded_by_numbers(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, word: str, dilation: Ints, groups: int
) -> Any:
    reach = [(size - 1) * step for size, step in zip(w.shape[2:], dilation, strict=True)]
    padding = [0, 0] if word == "valid" else [total // 2 for total in reach]
    return aten.conv2d.default(x, w, b, stride, padding, dilation, groups)


def padded_by_word(g: Generator) -> tuple[Any, ...]:
    x, w, bias, _, _, dilation, groups = conv_sample(2)(g)
    return x, w, bias, [1, 1], choose(g, "same", "valid"), dilation, groups


def word_means_both_sides_alike(match: Match, draft: Draft) -> str | None:
    """ "same" with an even kernel pads one side more, which two numbers cannot say."""
    found = spec(match.bindings["w"])
    sizes = found.shape[2:] if found else ()
    dilation = match.bindings["dilation"]
    odd = any((size - 1) * step % 2 for size, step in zip(sizes, dilation, strict=True))
    return "it pads one side more than the other" if odd and match.bindings["word"] == "same" else None


def pad_is_symmetric(match: Match, draft: Draft) -> str | None:
    pad = match.bindings["pad"]
    if len(pad) != 4 or pad[0] != pad[1] or pad[2] != pad[3] or min(pad) < 0:
        return f"padding {list(pad)} is not the same on both sides"
    return None


# ---------------------------------------------------------------- products written another way


def addmm(b: Tensor, x: Tensor, w: Tensor) -> Any:
    return aten.addmm.default(b, x, w)


def addmm_linear(b: Tensor, x: Tensor, w: Tensor) -> Any:
    return aten.linear.default(x, aten.t.default(w), b)


def mm(x: Tensor, w: Tensor) -> Any:
    return aten.mm.default(x, w)


def matmul(x: Tensor, w: Tensor) -> Any:
    return aten.matmul.default(x, w)


def matmul_linear(x: Tensor, w: Tensor) -> Any:
    return aten.linear.default(x, aten.t.default(w), None)


def bias_is_vector(match: Match, draft: Draft) -> str | None:
    found, weight = spec(match.bindings["b"]), spec(match.bindings["w"])
    fits = found and weight and tuple(found.shape) == (weight.shape[1],)
    return None if fits else "its bias is not a vector of the output features"


LINEAR = (
    PATCHES,
    *(batch_norm_into_conv(dims) for dims in (1, 2, 3)),
    Rule(
        name="batch-norm-into-linear", before=linear_norm, after=linear_normed, law=FOLDING,
        domain=several(lambda g: (normal(g, 5, 8), *linear_sample(g)[1:], *statistics(g, 6))),
        where=both(constant("w", "b", "gamma", "beta", "mean", "var"), rank("x", 2)),
    ),
    Rule(
        name="batch-norm-is-affine", before=norm_alone, after=affine, law=FOLDING,
        domain=several(lambda g: (normal(g, 2, 6, *[4] * choose(g, 0, 1, 2, 3)), *statistics(g, 6))),
    ),
    Rule(
        name="scale-into-conv", constants=("c",), before=conv_scaled, after=conv_with_scale, law=FOLDING,
        domain=several(lambda g: (*conv_sample(2)(g), normal(g, 6, 1, 1))),
        where=both(constant("w", "b"), per_channel("c", "w", -3)),
    ),
    Rule(
        name="number-into-conv", before=conv_times_number, after=conv_with_number, law=FOLDING,
        domain=several(lambda g: (*conv_sample(2)(g), choose(g, 8.0, -0.3))), where=constant("w", "b"),
    ),
    Rule(
        name="number-into-linear", before=linear_times_number, after=linear_with_number, law=FOLDING,
        domain=several(lambda g: (*linear_sample(g), choose(g, 8.0, -0.3))), where=constant("w", "b"),
    ),
    Rule(
        name="bias-into-conv", constants=("c",), before=conv_shifted, after=conv_with_shift, law=FOLDING,
        domain=several(lambda g: (*conv_sample(2)(g), normal(g, 6, 1, 1))),
        where=both(constant("w", "b"), per_channel("c", "w", -3)),
    ),
    Rule(
        name="scale-into-linear", constants=("c",), law=FOLDING,
        before=linear_scaled, after=linear_with_scale,
        domain=several(lambda g: (*linear_sample(g), normal(g, 6))),
        where=both(constant("w", "b"), per_channel("c", "w", -1)),
    ),
    Rule(
        name="bias-into-linear", constants=("c",), law=FOLDING,
        before=linear_shifted, after=linear_with_shift,
        domain=several(lambda g: (*linear_sample(g), normal(g, 6))),
        where=both(constant("w", "b"), per_channel("c", "w", -1)),
    ),
    Rule(
        name="padding-in-numbers", before=conv_padded_by_word, after=conv_padded_by_numbers,
        domain=several(padded_by_word),
        where=word_means_both_sides_alike,
    ),
    Rule(
        name="pad-into-conv", before=padded_conv, after=conv_with_padding, law=FOLDING,
        domain=several(lambda g: (*conv_sample(2)(g), choose(g, [1, 1, 2, 2], [0, 0, 1, 1]))),
        where=pad_is_symmetric,
    ),
    Rule(
        name="addmm-is-linear", constants=("w",), before=addmm, after=addmm_linear, law=FOLDING,
        domain=several(lambda g: (normal(g, 6), normal(g, 5, 8), normal(g, 8, 6))),
        where=both(constant("w"), bias_is_vector),
    ),
    Rule(
        name="mm-is-linear", constants=("w",), before=mm, after=matmul_linear, law=FOLDING,
        domain=several(lambda g: (normal(g, 5, 8), normal(g, 8, 6))), where=constant("w"),
    ),
    Rule(
        name="matmul-is-linear", constants=("w",), before=matmul, after=matmul_linear, law=FOLDING,
        domain=several(lambda g: (normal(g, 2, 5, 8), normal(g, 8, 6))),
        where=both(constant("w"), rank("w", 2)),
    ),
)  # fmt: skip
