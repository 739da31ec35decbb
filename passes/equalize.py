"""Cross-layer equalization: share the range of a channel between two layers (arXiv 1906.04721, section 4.1).

W2 f(W1 x + b1)  -->  (W2 t) f(W1/t x + b1/t)        f positively homogeneous        exact in reals

t_i = sqrt(max|W1[i, :]| / max|W2[:, i]|) makes both ranges equal.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label
from qcompiler.rewrite import Trait, has

LIMIT = 64.0
ROUNDS = 20
SETTLED = 0.01  # stop when no factor moves by more than 1 %


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two contractions joined by homogeneous ops with one reader each; all constants are the links' own."""

    first: Node
    second: Node


def equalize(graph: Graph) -> Graph:
    """Equalize every pair of linked layers until the factors settle."""
    draft = Draft(graph)
    links = list(find_links(draft))
    for link in links:
        draft.note("equalize", label(link.first), "applied")
    weights = {node: own(draft, node, "weight") for link in links for node in (link.first, link.second)}
    biases = {link.first: own(draft, link.first, "bias") for link in links}
    kept = [str(node.target) for node in (*weights.values(), *biases.values()) if node is not None]
    types = {name: draft.tensors[name].dtype for name in kept}
    draft.tensors |= {
        name: draft.tensors[name].float() for name in kept
    }  # halves are rounded once, at the end
    for _ in range(ROUNDS):
        moved = max((balance(draft, link, weights, biases) for link in links), default=0.0)
        if moved < SETTLED:
            break
    draft.tensors |= {name: draft.tensors[name].to(dtype) for name, dtype in types.items()}
    return draft.finish()


def find_links(draft: Draft) -> Iterable[Link]:
    for node in draft.nodes:
        if not is_layer(draft, node):
            continue
        end, obstacle = follow(node)
        obstacle = obstacle or cannot_link(draft, node, end)
        if end is not None and not obstacle:
            yield Link(first=node, second=end)
        elif obstacle:
            draft.note("equalize", label(node), "refused", obstacle)


def cannot_link(draft: Draft, first: Node, second: Node | None) -> str:
    """Why two contractions that follow one another may not share ranges; '' if they may."""
    if second is None:
        return ""
    if not is_layer(draft, second):
        return f"the weight of {label(second)} is computed at run time"
    if first.target is not second.target:
        return f"its channels are not those that {label(second)} contracts"
    if isinstance(bias := arguments(first).get("bias"), Node) and draft.tensor(bias) is None:
        return "its bias is computed at run time"
    return ""


def is_layer(draft: Draft, node: Node) -> bool:
    return (
        has(node, Trait.MIXES_CHANNELS)
        and "matmul" not in str(node.target)
        and (draft.tensor(arguments(node).get("weight")) is not None)
    )


def follow(layer: Node) -> tuple[Node | None, str]:
    """The next contraction behind homogeneous pointwise ops or pools, or what stands in the way."""
    node = layer
    while True:
        if len(node.users) != 1:
            return None, f"{len(node.users)} ops read its result" if node.users else ""
        read, (node,) = node, node.users
        if has(node, Trait.MIXES_CHANNELS):
            return (node, "") if node.args[0] is read else (None, f"{label(node)} reads it as a constant")
        if node.op == "output":
            return None, "the model returns its result"
        if not scales_with_each_channel(node, layer):
            return None, f"{label(node)} is not positively homogeneous in each channel"


def scales_with_each_channel(node: Node, layer: Node) -> bool:
    """f(t x) = t f(x) for a positive t per channel of `layer`.

    Of a sum or product of x with a number or itself the trait does not say that: x + 1, x * x.
    """
    pools = "conv" in str(layer.target) and "pool" in str(node.target)
    return (
        has(node, Trait.HOMOGENEOUS)
        and (has(node, Trait.ELEMENTWISE) or pools)
        and not has(node, Trait.COMMUTES)
        and len(node.all_input_nodes) == 1
    )


def own(draft: Draft, node: Node, name: str) -> Node | None:
    """A constant that only this node reads, so that it may be changed."""
    old = arguments(node).get(name)
    tensor = draft.tensor(old)
    if tensor is None or not isinstance(old, Node):
        return None
    copy = draft.constant(f"{old.target}.equalized", tensor.clone(), before=node)
    node.replace_input_with(old, copy)
    return copy


def balance(
    draft: Draft, link: Link, weights: dict[Node, Node | None], biases: dict[Node, Node | None]
) -> float:
    """Equalize one link; returns the largest relative change of a factor."""
    first, second = weights[link.first], weights[link.second]
    assert first is not None and second is not None
    w1, w2 = draft.tensors[str(first.target)], draft.tensors[str(second.target)]
    groups = int(arguments(link.second).get("groups", 1))
    r1, r2 = w1.flatten(1).abs().amax(1), input_range(w2, groups)
    if r1.numel() != r2.numel():
        return 0.0
    t = (r1.clamp(min=1e-9) / r2.clamp(min=1e-9)).sqrt().clamp(1 / LIMIT, LIMIT)
    draft.tensors[str(first.target)] = w1 / along(t, w1, 0)
    bias = biases[link.first]
    if bias is not None:
        draft.tensors[str(bias.target)] = draft.tensors[str(bias.target)] / t
    draft.tensors[str(second.target)] = scale_inputs(w2, t, groups)
    return float((t - 1).abs().max())


def along(t: Tensor, weight: Tensor, axis: int) -> Tensor:
    shape = [1] * weight.dim()
    shape[axis] = -1
    return t.reshape(shape)


def input_range(weight: Tensor, groups: int) -> Tensor:
    """max |W| per input channel of a [O, I / groups, ...] weight."""
    per_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return per_group.abs().amax((1, 3)).flatten()


def scale_inputs(weight: Tensor, t: Tensor, groups: int) -> Tensor:
    per_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return (per_group * t.reshape(groups, 1, -1, 1)).reshape(weight.shape)
