"""Cross-layer equalization: share the range of a channel between two layers (arXiv 1906.04721, section 4.1).

W2 f(W1 x + b1)  -->  (W2 t) f(W1/t x + b1/t)        f positively homogeneous        exact in reals

t_i = sqrt(max|W1[i, :]| / max|W2[:, i]|) makes both ranges equal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label
from qcompiler.rewrite import Trait, has

LIMIT = 64.0
ROUNDS = 20
SETTLED = 0.01  # stop when no factor moves by more than 1 %

Key = tuple[Node, str]
"""Who reads a constant, and as what: of one that others read too each reader gets its own."""
Constants = dict[Key, Tensor]


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two contractions joined by homogeneous ops with one reader each."""

    first: Node
    second: Node

    @property
    def constants(self) -> tuple[Key, Key, Key]:
        """Both weights and, between them, the bias of the first, which it need not have."""
        return (self.first, "weight"), (self.first, "bias"), (self.second, "weight")


def equalize(graph: Graph) -> Graph:
    """Equalize linked layers until the factors settle; a link is refused whose constants would be infinite.

    That changes what its neighbours settle at, so they begin anew.
    """
    draft = Draft(graph)
    links = list(find_links(draft))
    while True:
        scaled = settled(draft, links)
        infinite = {key for key, tensor in scaled.items() if not bool(tensor.isfinite().all())}
        refused = [link for link in links if infinite.intersection(link.constants)]
        if not refused:
            break
        for link in refused:
            draft.note("equalize", label(link.first), "refused", "it would leave the range of its type")
        links = [link for link in links if link not in refused]
    for link in links:
        draft.note("equalize", label(link.first), "applied")
    for (node, name), tensor in scaled.items():
        old = arguments(node)[name]
        node.replace_input_with(old, draft.constant(f"{old.target}.equalized", tensor, before=node))
    return draft.finish()


def settled(draft: Draft, links: Sequence[Link]) -> Constants:
    """What all links make of their constants, in the types that these have."""
    every = {key: draft.tensor(arguments(key[0]).get(key[1])) for link in links for key in link.constants}
    found = {key: tensor for key, tensor in every.items() if tensor is not None}
    scaled = {key: tensor.float() for key, tensor in found.items()}  # halves are rounded once, at the end
    for _ in range(ROUNDS):
        moved = max((balance(scaled, link) for link in links), default=0.0)
        if moved < SETTLED:
            break
    return {key: tensor.to(found[key].dtype) for key, tensor in scaled.items()}


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


def balance(constants: Constants, link: Link) -> float:
    """Equalize one link; returns the largest relative change of a factor."""
    first, bias, second = link.constants
    w1, w2 = constants[first], constants[second]
    groups = int(arguments(link.second).get("groups", 1))
    r1, r2 = w1.flatten(1).abs().amax(1), input_range(w2, groups)
    if r1.numel() != r2.numel():
        return 0.0
    t = (r1.clamp(min=1e-9) / r2.clamp(min=1e-9)).sqrt().clamp(1 / LIMIT, LIMIT)
    constants[first] = w1 / along(t, w1, 0)
    if bias in constants:
        constants[bias] = constants[bias] / t
    constants[second] = scale_inputs(w2, t, groups)
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
