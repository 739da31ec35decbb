"""Values whose range is taken at run time: codes by row, and scale and zero point for who reads them.

dynamic_quantize(x)   -->   extremes(x), encode_at_once(x, ..)        q, s and z in memory
norm, gate, attention, which one reads   -->   their extremes in the same pass
"""

import operator

import torch
from torch.fx import Node

from qcompiler.backends.tvm.families.base import Layer, Places
from qcompiler.backends.tvm.kernels.extremes import extremes_of
from qcompiler.backends.tvm.kernels.ranges import encode_at_once, extremes
from qcompiler.backends.tvm.kernels.rows import rows
from qcompiler.backends.tvm.plane import NUMBER
from qcompiler.ir import arguments

qc = torch.ops.qcompiler


def ranged(places: Places, decoded: Node) -> Layer | None:
    """What a dequantize decodes, if its range is taken at run time: codes, scale and zero point."""
    given = arguments(decoded)
    parts = [given[name] for name in ("q", "scale", "zero_point")]
    source = floats_of(decoded)
    if source is None:
        return None
    x = places.rows(source)
    plane, found = places.stores[x].plane, extremes_name(x)
    if found not in places.stores:
        hold_extremes(places, x, rows(plane))
        places.call(
            decoded,
            Layer(
                kernel="range", description=("extremes", plane),
                make=lambda name: extremes(plane, places.isa, name), arguments=(x,), results=(found,),
            ),
        )  # fmt: skip
    turns = places.stores[found].plane.width
    kinds = ((plane, "uint8"), (NUMBER, "float32"), (NUMBER, "int32"))
    for part, (memory, dtype) in zip(parts, kinds, strict=True):
        places.keep(part, memory, dtype)
    return Layer(
        kernel="range", description=("encode at once", plane, turns),
        make=lambda name: encode_at_once(plane, plane, turns, places.isa, name),
        arguments=(x, found), results=tuple(part.name for part in parts),
    )  # fmt: skip


def ranged_behind(places: Places, value: Node, turns: int) -> tuple[str, ...]:
    """Where what computes a value by row leaves its extremes, if somebody takes its range at run time."""
    if not any(user.target is qc.dynamic_quantize.default for user in value.users):
        return ()
    return (hold_extremes(places, value.name, turns),)


def hold_extremes(places: Places, x: str, turns: int) -> str:
    places.hold(extremes_name(x), extremes_of(turns, places.isa), "float32")
    return extremes_name(x)


def extremes_name(x: str) -> str:
    return f"{x}.extremes"


def floats_of(decoded: Node) -> Node | None:
    """The floats that a dequantize gives back, where they became codes on a range of their own."""
    codes = decoded.args[0]
    assert isinstance(codes, Node)
    made = codes.args[0] if codes.target is operator.getitem else None
    if not isinstance(made, Node) or made.target is not qc.dynamic_quantize.default:
        return None
    source = made.args[0]
    assert isinstance(source, Node)
    return source
