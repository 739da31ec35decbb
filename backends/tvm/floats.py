"""Ops on floats that have kernels of our own, with the codes of their results: a table from ops to families.

norm(x), quantize(norm(x))   -->   one function that writes both         floats and codes by row
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from qcompiler.backends.tvm.attention import attention_of_floats
from qcompiler.backends.tvm.cache import attention_over_cache
from qcompiler.backends.tvm.coding import has_known_step, step_of, written
from qcompiler.backends.tvm.families.base import Layer, Places
from qcompiler.backends.tvm.fewbits import few_bit_linear, rounded_behind
from qcompiler.backends.tvm.gates import gate, gelu
from qcompiler.backends.tvm.kernels.norm import Norm, encode_rows, norm
from qcompiler.backends.tvm.kernels.rows import rows
from qcompiler.backends.tvm.ranges import ranged_behind
from qcompiler.backends.tvm.rotary import turned
from qcompiler.ir import arguments

aten = torch.ops.aten
qc = torch.ops.qcompiler


def layer_norm(places: Places, node: Node) -> Layer | None:
    return normed(places, node, centered=True, epsilon=arguments(node)["eps"])


def rms_norm(places: Places, node: Node) -> Layer | None:
    epsilon = arguments(node)["eps"]
    return normed(
        places, node, centered=False, epsilon=torch.finfo(torch.float32).eps if epsilon is None else epsilon
    )


def normed(places: Places, node: Node, *, centered: bool, epsilon: float) -> Layer | None:
    """Floats where somebody reads them, and the codes that the first reader makes of them."""
    given = arguments(node)
    width = places.shapes[node][-1]
    constants = {name: found for name in ("weight", "bias") if isinstance(found := given.get(name), Node)}
    fits = list(given["normalized_shape"]) == [width] and not {node, given["input"]} & places.images
    if not fits or any(constant.op != "get_attr" for constant in constants.values()):
        return None
    x, to = places.rows(given["input"]), written(places, node)
    block, rounded = rounded_behind(places, node, to.floats)
    found = () if to.floats is None else ranged_behind(places, node, rows(to.floats))
    layer = Norm(
        x=places.stores[x].plane, centered=centered, bias="bias" in constants, epsilon=epsilon,
        floats=to.floats, codes=to.codes, block=block, ranged=bool(found),
    )  # fmt: skip
    gain = places.tensor(constants["weight"]).float() if "weight" in constants else torch.ones(width)
    known = {f"{node.name}.gain": gain.numpy()}
    if "bias" in constants:
        known[f"{node.name}.bias"] = places.tensor(constants["bias"]).float().numpy()
    known |= to.step
    return Layer(
        kernel="norm", description=layer, make=lambda name: norm(layer, places.isa, name),
        arguments=(x, *known), results=(*to.names, *rounded, *found), constants=known,
    )  # fmt: skip


def encoded(places: Places, codes: Node) -> Layer | None:
    """Rows of floats as codes."""
    if not has_known_step(codes):
        return None
    source = codes.args[0]
    assert isinstance(source, Node)
    x = places.rows(source)
    plane = places.stores[x].plane
    y = places.stores[places.place(codes, codes)].plane
    known = step_of(places, codes)
    return Layer(
        kernel="encode", description=("encode", plane, y),
        make=lambda name: encode_rows(plane, y, places.isa, name),
        arguments=(x, *known), results=(codes.name,), constants=known,
    )  # fmt: skip


FLOATS: Mapping[Any, Callable[[Places, Node], Layer | None]] = {
    aten.linear.default: few_bit_linear,
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.mul.Tensor: gate,
    aten.gelu.default: gelu,
    qc.rotary.default: turned,
    qc.attention.default: attention_of_floats,
    qc.cached_attention.default: attention_over_cache,
}
