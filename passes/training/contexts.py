"""How backward reads a value that crosses, and so the fewest bits that serve.

    linear      dW = dY^T x, dx = dy f'         a store without bias gives a gradient without bias: 8, 4, 2
    quadratic   softmax from its result         the bias does not show at 4 bits, and does at 2: 8, 4
    nonlinear   exp(x), x^3, ...                8
    exact       a log-sum-exp, a mean           no error may enter, for everything else is scaled with it

Bias of the nonlinear ones: about f'''(x) Var(x) dy / 2; of softmax: -dy_i Var(y_i).
"""

from collections.abc import Mapping, Set
from itertools import permutations
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from qcompiler.ir import scales as _scales  # noqa: F401 - registers the operators
from qcompiler.passes.training.joint import dependent
from qcompiler.passes.training.operators import PRODUCTS
from qcompiler.rewrite.traits import Trait, has

aten = torch.ops.aten
ops = torch.ops.qcompiler

Bits = tuple[int, ...]
LINEAR: Bits = (8, 4, 2)
QUADRATIC: Bits = (8, 4)
NONLINEAR: Bits = (8,)
EXACT: Bits = ()

# Operators of backward by the operands that they read from forward. What is not here is taken for nonlinear.
READS: Mapping[Any, Mapping[int, Bits]] = {
    ops.operand_scale.default: {0: LINEAR, 1: EXACT},
    aten.convolution_backward.default: {1: LINEAR, 2: LINEAR},
    # Their statistics are exact, so that only (x - mean) rstd carries noise: bias ~ 1 / width.
    aten.native_layer_norm_backward.default: {1: LINEAR, 3: EXACT, 4: EXACT, 5: LINEAR},
    aten._fused_rms_norm_backward.default: {1: LINEAR, 3: EXACT, 4: LINEAR},
    aten.native_group_norm_backward.default: {1: LINEAR, 2: EXACT, 3: EXACT, 4: LINEAR},
    aten.native_batch_norm_backward.default: {1: LINEAR, 2: LINEAR, 3: EXACT, 4: EXACT, 5: EXACT, 6: EXACT},
    aten.batch_norm_backward.default: {1: LINEAR, 2: LINEAR, 3: EXACT, 4: EXACT, 5: EXACT, 6: EXACT},
    aten._softmax_backward_data.default: {1: QUADRATIC},
    aten._log_softmax_backward_data.default: {1: EXACT},
    # It takes exp(q k + mask - logsumexp), and masks hold infinities.
    **{op: {1: NONLINEAR, 2: NONLINEAR, 3: LINEAR, 4: LINEAR, 5: EXACT, 8: EXACT} for op in (
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        aten._scaled_dot_product_cudnn_attention_backward.default,
    )},
    aten._scaled_dot_product_efficient_attention_backward.default: {
        1: NONLINEAR, 2: NONLINEAR, 3: LINEAR, 4: EXACT, 5: LINEAR, 6: EXACT,
    },
}  # fmt: skip
# Linear in every operand alone, beside those that have the trait. What products in few bits round by
# themselves is there with and without the noise of a store.
ALSO_LINEAR = frozenset({
    *PRODUCTS, aten.add.Tensor, aten.sub.Tensor, aten.neg.default, aten.sum.dim_IntList, aten.sum.default,
    aten.mean.dim, aten.mul.Scalar, aten._to_copy.default, aten.where.self, aten.where.ScalarOther,
    aten.native_dropout_backward.default, aten.as_strided.default,
})  # fmt: skip


# What reads several values and multiplies none with another.
ADDITIVE = frozenset({
    aten.add.Tensor, aten.sub.Tensor, aten.cat.default, aten.stack.default, aten.where.self,
    aten.slice_scatter.default, aten.select_scatter.default, aten.index_put.default,
})  # fmt: skip


def readings(arrival: Node, late: set[Node]) -> Bits:
    """The bits that all readers of an input of backward leave it; `late` depends on gradients."""
    found, seen, open_ = set(LINEAR), {arrival}, [arrival]
    while open_:
        value = open_.pop()
        for reader in value.users:
            if reader.target in PRODUCTS and reader not in late:
                # It is computed again: its sums average the noise, but what reads them bends it.
                found &= set(QUADRATIC)
                continue
            bits = reading(value, reader)
            found &= set(bits)
            if bits == LINEAR and reader not in late and reader not in seen:
                seen.add(reader)  # its result is as noisy as the value, and read by others
                open_.append(reader)
    if found and meets_itself(arrival):
        found &= set(QUADRATIC)
    return tuple(sorted(found, reverse=True))


def meets_itself(arrival: Node) -> bool:
    """Whether what depends on a value is multiplied with what depends on it, too: with its noise squared."""
    noisy = dependent(arrival.graph, [arrival])
    return meet(noisy, noisy)


def meet(one: Set[Node], other: Set[Node]) -> bool:
    """Whether a value of the one is multiplied with a value of the other."""
    readers = (node for node in one if node.op == "call_function" and node.target not in ADDITIVE)
    return any(
        left in one and right in other for node in readers for left, right in permutations(operands(node), 2)
    )


def operands(node: Node) -> list[Node]:
    """The values that a call reads, as often as it does."""
    return [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)]


def reading(value: Node, reader: Node) -> Bits:
    """The bits that one reader leaves a value."""
    if reader.op == "output":
        return LINEAR
    places = [place for place, arg in enumerate(reader.args) if arg is value]
    if reader.target in READS:
        row = READS[reader.target]
        if not places:
            return EXACT  # an option: the mask of attention, which holds infinities
        return min((row.get(place, NONLINEAR) for place in places), key=len)
    if len(places) == 1 and (has(reader, Trait.LINEAR) or reader.target in ALSO_LINEAR):
        return LINEAR
    if reader.target is aten.div.Tensor and places == [0]:
        return LINEAR
    return NONLINEAR
