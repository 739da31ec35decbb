"""What the linears of a model read, and who makes its codes: with its linears, all that it asks of a device.

    by         a pass of its own                where the product before may spare it
    rows       seeks the maxima of rows         that product brings them, and rows are read once
    scale      by one that is known             that product writes codes, and there is none
    floats     none: weights of few bits are multiplied by floats

Whether it does depends on what computes the linears, and so on the rows of a call: see `onward`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.layer import Layer
from qcompiler.backends.triton.engine.onward import is_long
from qcompiler.backends.triton.ops.schedule import named
from qcompiler.ir import spec
from qcompiler.numerics.row_codes import CODES

ROWS, SCALE, FLOATS = "rows", "scale", "floats"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """by: one of the words above. x: the type of the floats. readers: the linears that share the codes.

    They have one K and one format. maker: the linear before, if it may spare the pass.
    """

    by: str
    x: str
    readers: tuple[Linear, ...]
    maker: Linear | None = None


def readings_of(layers: Sequence[Layer]) -> Counter[Reading]:
    """What layers read, and how often a model has just that."""
    groups: dict[tuple[Node, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.coded or layer.x, layer.problem.format), []).append(layer)
    makers = {layer.onward: layer for layer in layers if layer.onward is not None}
    makers |= {layer.result: layer for layer in layers if is_long(layer.problem)}
    return Counter(reading(value, found, makers.get(value)) for (value, _), found in groups.items())


def reading(value: Node, readers: Sequence[Layer], maker: Layer | None) -> Reading:
    first = readers[0]
    held = spec(first.x)
    assert held is not None
    by = FLOATS if first.is_weight_only else ROWS if first.coded is None else SCALE
    spares = by == SCALE or (by == ROWS and first.problem.format in CODES)
    return Reading(
        by=by, x=named(held.dtype), readers=tuple(layer.problem for layer in readers),
        maker=maker.problem if maker is not None and spares else None,
    )  # fmt: skip
