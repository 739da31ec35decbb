"""SmoothQuant: move the outliers of a norm's channels into the weights that read it.

linear(norm(x; g, b), W)  -->  linear(norm(x; g / t, b / t), W t)      exact in reals
linear(g x, W)            -->  linear(g / t x, W t)                     g a vector: how norms end in halves

t_j = max|X_j|^a / max|W_j|^(1 - a)   (arXiv 2211.10438, eq. 4), a chosen per norm by estimated error.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec
from qcompiler.passes.calibrate import Ranges, Statistics
from qcompiler.rewrite import Trait, has

aten = torch.ops.aten
# Norms with a gain per channel: op -> names of what scales with the output.
NORMS: Mapping[object, tuple[str, ...]] = {
    aten.layer_norm.default: ("weight", "bias"),
    aten.rms_norm.default: ("weight",),
}
EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEVELS = 255.0
WEIGHT_LEVELS = 127.0
LIMIT = 64.0  # a channel is scaled by 2^-6 .. 2^6 at most


def norm_outputs(graph: Graph) -> list[Node]:
    """The values whose statistics `smooth` needs."""
    return [node for node in graph.fx.nodes if gains(node)]


def gains(node: Node) -> tuple[str, ...]:
    """Names of the arguments that an output scales with, channel by channel; empty where it has none.

    Norms of models in halves compute in float32 and are no op of their own: what is left of them is the
    product of their gain and of what they cast back.
    """
    if node.target is not aten.mul.Tensor or not any(is_linear(user) for user in node.users):
        return NORMS.get(node.target, ())
    return tuple(name for name, given in arguments(node).items() if is_vector(given))


def is_linear(node: Node) -> bool:
    return node.target is aten.linear.default


def is_vector(given: object) -> bool:
    found = spec(given) if isinstance(given, Node) and given.op == "get_attr" else None
    return found is not None and len(found.shape) == 1


def smooth(graph: Graph, ranges: Ranges, *, exponent: float | None = None) -> Graph:
    """Smooth every norm that only linears read; `exponent` fixes a, else it is searched."""
    draft = Draft(graph)
    for node in draft.nodes:
        if not gains(node):
            continue
        readers, obstacle = linear_readers(node)
        reason = obstacle or missing_constant(draft, node, readers)
        if reason:
            draft.note("smooth", label(node), "refused", reason)
            continue
        weights = [weight_of(draft, reader) for reader in readers]
        factor = best_factor(ranges[node.name], weights, exponent)
        if factor is None:
            draft.note("smooth", label(node), "refused", "no exponent lowers the estimated error")
            continue
        reason = fold(draft, node, readers, factor, "smooth")
        draft.note("smooth", label(node), "refused" if reason else "applied", reason)
    return draft.finish()


def linear_readers(node: Node) -> tuple[list[Node], str]:
    """The linears that read a norm, through reshapes that keep the channels last; or the obstacle."""
    found: list[Node] = []
    for user in node.users:
        if is_linear(user) and user.args[0] is node:
            found.append(user)
        elif has(user, Trait.MOVES_DATA) and user.target is aten.view.default:
            inner, obstacle = linear_readers(user)
            if obstacle:
                return [], obstacle
            found.extend(inner)
        else:
            return [], f"its output is also read by {label(user)}"
    return found, "" if found else "nothing reads it"


def missing_constant(draft: Draft, node: Node, readers: Sequence[Node]) -> str:
    gain = draft.tensor(arguments(node).get(gains(node)[0]))
    if gain is None:
        return "it has no gain to fold into"
    if any(draft.tensor(reader.args[1]) is None for reader in readers):
        return "a weight that reads it is computed at run time"
    if any(weight_of(draft, reader).shape[1] != gain.numel() for reader in readers):
        return "the channels are not the features of its readers"
    return ""


def weight_of(draft: Draft, linear: Node) -> Tensor:
    tensor = draft.tensor(linear.args[1])
    assert tensor is not None
    return tensor


def best_factor(statistics: Statistics, weights: Sequence[Tensor], exponent: float | None) -> Tensor | None:
    """The t of least estimated error among the exponents, or None if leaving it alone is better."""
    assert statistics.largest is not None and statistics.squares is not None
    largest = statistics.largest.clamp(min=1e-5)
    power = statistics.squares / statistics.count
    columns = torch.stack([weight.abs().amax(0).float() for weight in weights]).amax(0).clamp(min=1e-5)
    if exponent is not None:
        return factor_for(largest, columns, exponent)
    unit = torch.ones_like(largest)
    tried = [unit, *(factor_for(largest, columns, a) for a in EXPONENTS)]
    errors = [sum(estimated_error(largest, power, weight, t) for weight in weights) for t in tried]
    best = tried[errors.index(min(errors))]
    return None if best is unit else best


def factor_for(largest: Tensor, columns: Tensor, exponent: float) -> Tensor:
    factor = largest**exponent / columns ** (1 - exponent)
    middle = (factor.max() * factor.min()).sqrt()
    return (factor / middle).clamp(1 / LIMIT, LIMIT)


def estimated_error(largest: Tensor, power: Tensor, weight: Tensor, t: Tensor) -> float:
    """Noise of the rounded input through W t plus noise of the rounded weight; rounding is s^2 / 12."""
    scaled = weight * t
    step = 2 * (largest / t).max() / LEVELS
    weight_step = scaled.abs().amax(1) / WEIGHT_LEVELS
    noise = step**2 * (scaled**2).sum() + (weight_step**2).sum() * (power / t**2).sum()
    return float(noise / 12)


def fold(draft: Draft, writer: Node, readers: Sequence[Node], t: Tensor, mark: str) -> str:
    """Give writer and readers constants of their own, scaled so that the product stays; or the obstacle."""
    scaled = list(folded(draft, writer, readers, t))
    if not all(bool(tensor.isfinite().all()) for *_, tensor in scaled):
        return "what is folded would leave the range of its type"
    for node, old, tensor in scaled:
        node.replace_input_with(old, draft.constant(f"{old.target}.{mark}", tensor, before=node))
    return ""


def folded(
    draft: Draft, writer: Node, readers: Sequence[Node], t: Tensor
) -> Iterator[tuple[Node, Any, Tensor]]:
    """Who reads a constant, the constant, and what becomes of it in its type.

    The writer is a norm or a product with a gain, or a linear, whose rows are scaled.
    """
    given = arguments(writer)
    for name in gains(writer) or ("weight", "bias"):
        tensor = draft.tensor(given.get(name))
        if tensor is not None:
            yield writer, given[name], (tensor / (t if tensor.dim() == 1 else t[:, None])).to(tensor.dtype)
    for reader in readers:
        weight = weight_of(draft, reader)
        yield reader, reader.args[1], (weight * t).to(weight.dtype)
