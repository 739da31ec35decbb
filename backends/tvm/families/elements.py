"""Element by element: sums, products, tables of 256 entries, and concatenation along channels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.backends.reference.kernels import multiply_add
from qcompiler.backends.tvm.families.base import Layer, Places, entries, layer, scale, shape_of, zero_point
from qcompiler.backends.tvm.kernels import add as kernels
from qcompiler.ir import arguments
from qcompiler.passes.partition import Region


def add(places: Places, region: Region) -> Layer | None:
    """r_a, r_b and z_y - (r_a z_a + r_b z_b), as the reference forms them."""
    result = scale(places, region.result)
    (ratio_a, zero_a), (ratio_b, zero_b) = (
        (scale(places, x) / result, torch.tensor(float(zero_point(places, x)))) for x in region.operands
    )
    fixed = float(zero_point(places, region.result)) - multiply_add(zero_a, ratio_a, ratio_b * zero_b)
    steps = np.array([ratio_a, ratio_b, fixed], np.float32)
    return of_two(places, region, "sum", steps, lambda both, name: kernels.add(both, places.isa, name), ())


def multiply(places: Places, region: Region) -> Layer | None:
    a, b, y = (zero_point(places, node) for node in (*region.operands, region.result))
    steps = np.array([scale(places, node) for node in (*region.operands, region.result)], np.float32)
    known = kernels.Zeros(a=a, b=b, y=y)
    return of_two(
        places, region, "product", steps,
        lambda both, name: kernels.multiply(both, known, places.isa, name), known,
    )  # fmt: skip


def of_two(
    places: Places,
    region: Region,
    kernel: str,
    steps: NDArray[Any],
    make: Callable[[Any, str], Any],
    more: Any,
) -> Layer | None:
    if shape_of(region.operands[0]) != shape_of(region.operands[1]):
        return None  # a tensor that is repeated along an axis
    names = [places.plane(operand) for operand in region.operands]
    first, second = (places.stores[name].plane for name in names)
    if any(p.pitch % places.isa.lanes for p in (first, second)):
        return None
    both = kernels.Pair(a=first, b=second, y=places.result(region))
    return layer(
        kernel, (kernel, both, more), lambda name: make(both, name), tuple(names), region, numbers=steps
    )


def table(places: Places, region: Region) -> Layer | None:
    name = places.plane(region.operands[0])
    x = places.stores[name].plane
    if x.pitch % places.isa.lanes:
        return None
    y = places.result(region)
    return layer(
        "table", ("table", x, y), lambda made: kernels.table(x, y, places.isa, made), (name,), region,
        table=entries(places, region, region.operands[0]),
    )  # fmt: skip


def concatenate(places: Places, region: Region) -> Layer | None:
    """Along channels only: side by side in every pixel."""
    rank = len(shape_of(region.anchor))
    channels_last = region.anchor not in places.images
    if int(arguments(region.anchor)["dim"]) % rank != (rank - 1 if channels_last else 1):
        return None
    names = [places.plane(operand) for operand in region.operands]
    inputs = tuple(places.stores[name].plane for name in names)
    y = places.result(region)
    tables = {f"table{i}": entries(places, region, operand) for i, operand in enumerate(region.operands)}
    return layer(
        "concatenation", ("cat", inputs, y), lambda made: kernels.concatenate(inputs, y, places.isa, made),
        tuple(names), region, **tables,
    )  # fmt: skip
