"""Pointwise functions and norms written out by hand, brought back to one op; clamps in one normal form."""

from typing import Any

import torch
from torch import Generator, Tensor

from qcompiler.ir import Draft, spec
from qcompiler.passes.rules.conditions import constant
from qcompiler.passes.rules.sample import choose, normal, positive, several
from qcompiler.rewrite import Match, Rule, reals

aten = torch.ops.aten
qc = torch.ops.qcompiler

# ---------------------------------------------------------------- activations


def silu_parts(x: Tensor) -> Any:
    return aten.mul.Tensor(x, aten.sigmoid.default(x))


def silu(x: Tensor) -> Any:
    return aten.silu.default(x)


def gelu_parts(x: Tensor) -> Any:
    half = aten.mul.Tensor(x, 0.5)
    return half * (aten.erf.default(x / 1.4142135623730951) + 1.0)


def gelu_parts_scaled(x: Tensor) -> Any:
    half = aten.mul.Tensor(x, 0.5)
    return half * (aten.erf.default(x * 0.7071067811865476) + 1.0)


def gelu(x: Tensor) -> Any:
    return aten.gelu.default(x, approximate="none")


def gelu_tanh_parts(x: Tensor) -> Any:
    """Hendrycks and Gimpel, arXiv 1606.08415, the tanh approximation."""
    inner = aten.add.Tensor(x, aten.mul.Tensor(aten.pow.Tensor_Scalar(x, 3.0), 0.044715))
    tanh = aten.tanh.default(aten.mul.Tensor(inner, 0.7978845608028654))
    return aten.mul.Tensor(aten.mul.Tensor(x, 0.5), aten.add.Tensor(tanh, 1.0))


def gelu_tanh(x: Tensor) -> Any:
    return aten.gelu.default(x, approximate="tanh")


def points(generator: Generator) -> tuple[Tensor]:
    return (normal(generator, 4, 33) * 3,)


# ---------------------------------------------------------------- RMSNorm (arXiv 1910.07467, eq. 4)


def rms_norm_parts(x: Tensor, weight: Tensor, eps: float) -> Any:
    mean = aten.mean.dim(aten.pow.Tensor_Scalar(x, 2), [-1], True)
    return aten.mul.Tensor(weight, aten.mul.Tensor(x, aten.rsqrt.default(aten.add.Tensor(mean, eps))))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Any:
    return aten.rms_norm.default(x, list(weight.shape), weight, eps)


def rms_norm_in_graph(match: Match, draft: Draft) -> str | None:
    weight = spec(match.bindings["weight"])
    return None if weight and len(weight.shape) == 1 else "its gain is not a vector"


# ---------------------------------------------------------------- clamps


def clamp_between(x: Tensor, low: float, high: float) -> Any:
    return aten.hardtanh.default(x, low, high)


def clamp(x: Tensor, low: float, high: float) -> Any:
    return aten.clamp.default(x, low, high)


def clamp_at_zero(x: Tensor) -> Any:
    return aten.clamp.default(x, 0, None)


def clamp_min_zero(x: Tensor) -> Any:
    return aten.clamp_min.default(x, 0)


def relu(x: Tensor) -> Any:
    return aten.relu.default(x)


def relu6(x: Tensor) -> Any:
    return aten.relu6.default(x)


def clamp_zero_six(x: Tensor) -> Any:
    return aten.clamp.default(x, 0.0, 6.0)


# ---------------------------------------------------------------- padding


def pad_by_mode(x: Tensor, pad: list[int], value: float | None) -> Any:
    return aten.pad.default(x, pad, "constant", value)


def constant_pad(x: Tensor, pad: list[int], value: float | None) -> Any:
    return aten.constant_pad_nd.default(x, pad, 0.0 if value is None else value)


# ---------------------------------------------------------------- pooling over all of space


def mean_over_space(x: Tensor, axes: list[int]) -> Any:
    return aten.mean.dim(x, axes, True)


def mean_over_space_dropped(x: Tensor, axes: list[int]) -> Any:
    return aten.mean.dim(x, axes)


def global_pool_over(x: Tensor, axes: list[int]) -> Any:
    return qc.global_avg_pool.default(x)


def global_pool_over_dropped(x: Tensor, axes: list[int]) -> Any:
    return aten.squeeze.dims(qc.global_avg_pool.default(x), [2, 3])


def pool_to_one(x: Tensor) -> Any:
    return aten.adaptive_avg_pool2d.default(x, [1, 1])


def global_pool(x: Tensor) -> Any:
    return qc.global_avg_pool.default(x)


def is_image(match: Match, draft: Draft) -> str | None:
    found = spec(match.bindings["x"])
    return None if found and len(found.shape) == 4 else "its input is not [N, C, H, W]"


def is_over_space(match: Match, draft: Draft) -> str | None:
    """Height and width in any order, counted from either end."""
    axes = match.bindings["axes"]
    if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        return f"it averages over {axes}, not height and width"
    return is_image(match, draft)


def images(generator: Generator) -> tuple[Tensor]:
    return (normal(generator, 2, 3, 5, 4),)


def images_and_axes(generator: Generator) -> tuple[Tensor, list[int]]:
    return (*images(generator), choose(generator, [2, 3], [-1, -2], [-2, -1], [3, 2], [2, -1]))


def pointwise(name: str, before: Any, after: Any, ulps: int = 64) -> Rule:
    return Rule(name=name, before=before, after=after, domain=several(points), law=reals(ulps))


ARITHMETIC = (
    pointwise("silu", silu_parts, silu),
    pointwise("gelu", gelu_parts, gelu),
    pointwise("gelu-scaled", gelu_parts_scaled, gelu),
    pointwise("gelu-tanh", gelu_tanh_parts, gelu_tanh),
    Rule(
        name="rms-norm",
        before=rms_norm_parts,
        after=rms_norm,
        domain=several(lambda g: (normal(g, 3, 5, 16), positive(g, 16), 1e-6)),
        law=reals(64),
        where=lambda match, draft: constant("weight")(match, draft) or rms_norm_in_graph(match, draft),
    ),
    Rule(name="hardtanh-is-clamp", before=clamp_between, after=clamp,
         domain=several(lambda g: (*points(g), -0.5, 2.0))),
    Rule(name="relu6-is-clamp", before=relu6, after=clamp_zero_six, domain=several(points)),
    Rule(name="clamp-is-relu", before=clamp_at_zero, after=relu, domain=several(points)),
    Rule(name="clamp-min-is-relu", before=clamp_min_zero, after=relu, domain=several(points)),
    Rule(name="pad-by-a-constant", before=pad_by_mode, after=constant_pad,
         domain=several(lambda g: (*images(g), choose(g, [1, 2], [1, 1, 2, 0]), choose(g, None, 0.0, -1.5)))),
    Rule(name="global-pool", before=mean_over_space, after=global_pool_over,
         domain=several(images_and_axes), law=reals(8), where=is_over_space),
    Rule(name="global-pool-dropped", before=mean_over_space_dropped, after=global_pool_over_dropped,
         domain=several(images_and_axes), law=reals(8), where=is_over_space),
    Rule(name="adaptive-pool-is-global", before=pool_to_one, after=global_pool,
         domain=several(images), law=reals(8), where=is_image),
)  # fmt: skip
