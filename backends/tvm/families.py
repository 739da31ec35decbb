"""Regions as layers of a kernel family: a table from formulas to what computes them.

Region  -->  Layer (what the function is made of, its arguments, its constants), or None: the reference
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.reference import coded, output_of
from qcompiler.backends.reference.attention import factors
from qcompiler.backends.reference.formulas import FORMULAS
from qcompiler.backends.reference.kernels import Call, Codes, multiply_add
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels import add as elements
from qcompiler.backends.tvm.kernels import attention as heads
from qcompiler.backends.tvm.kernels import depthwise as channels
from qcompiler.backends.tvm.kernels import pool as pools
from qcompiler.backends.tvm.kernels.conv import LINE, Convolution, convolution, merged, pack
from qcompiler.backends.tvm.plane import Plane, pitch_of
from qcompiler.backends.tvm.schedules import Choose
from qcompiler.ir import Graph, arguments, spec
from qcompiler.passes.partition import Region
from qcompiler.passes.profit import Fusion
from qcompiler.target import Target

aten = torch.ops.aten
FARTHEST = 2.0**31 - 256  # what is rounded to int32 must fit


class Places(Protocol):
    """What a family asks of the lowering: where codes lie, and constants."""

    graph: Graph
    isa: Isa
    target: Target
    stores: dict[str, Any]
    shapes: Mapping[Node, tuple[int, ...]]
    choose: Choose
    images: frozenset[Node]

    def plane(self, decoded: Node) -> str: ...
    def rows(self, value: Node) -> str: ...
    def float_rows(self, value: Node) -> Plane: ...
    def hold(self, name: str, plane: Plane, dtype: str) -> None: ...
    def keep(self, value: Node, plane: Plane, dtype: str) -> None: ...
    def cached(self, past: Node, plane: Plane, cache: Sequence[Node]) -> str: ...
    def first(self, value: Node, plane: Plane) -> str: ...
    def known(self, value: Node, *, before: Node) -> bool: ...
    def call(self, node: Node, layer: "Layer") -> None: ...
    def place(self, codes: Node, pair: Node) -> str: ...
    def mask(self, value: Node) -> str: ...
    def table_behind(self, region: Region, alone: Any) -> Region | None: ...
    def plane_of(self, value: Node, border: int) -> Plane: ...
    def pays(self, fusion: Fusion | None) -> bool: ...
    def result(self, region: Region) -> Plane: ...
    def tensor(self, node: Any) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A call of one function: `make` builds it, and equal descriptions share it; the results come last.

    `regions` are what it computes, one after the other; none where it computes floats.
    """

    kernel: str
    description: Any
    make: Callable[[str], Any]
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()


# ---------------------------------------------------------------- convolutions and linears


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """A convolution, or a linear as one of a single pixel: codes [O, C / groups, KH, KW]."""

    codes: NDArray[np.int8]
    window: Mapping[str, tuple[int, int]]
    groups: int


def contraction(places: Places, region: Region) -> Layer | None:
    assert region.weight is not None
    given = arguments(region.anchor)
    codes = places.tensor(arguments(region.weight)["q"]).numpy()
    found = Contraction(codes=codes[..., None, None], window={}, groups=1)
    if region.row.formula == "linear" and region.operands[0] in places.images:
        return None  # along a line of an image
    if region.row.formula == "conv":
        flat = codes.ndim == 3  # along a line: an image of height 1
        window = {
            name: across(given[name], flat, still)
            for name, still in (("stride", 1), ("padding", 0), ("dilation", 1))
        }
        codes = codes[:, :, None] if flat else codes
        found = Contraction(codes=codes, window=window, groups=given["groups"])
    if region.returns_codes and reach(places, region, codes) >= FARTHEST:
        return None
    x = places.stores[places.plane(region.operands[0])].plane
    by_channel = found.groups == x.channels == len(codes) and x.pitch % channels.PART == 0
    if by_channel and region.residual is None and not is_ranged(region.operands[0]):
        return depthwise(places, region, found)
    return convolved(places, region, found)


def depthwise(places: Places, region: Region, found: Contraction) -> Layer:
    isa, x = places.isa, places.plane(region.operands[0])
    each = channels.Depthwise(
        x=places.stores[x].plane, y=places.result(region), kernel=found.codes.shape[2:],
        zero_point=zero_point(places, region.result), **found.window,
    )  # fmt: skip
    bias, multiplier = numbers(places, region, found.codes)
    patch = places.choose(each)
    return layer(
        "depthwise", each, lambda name: channels.depthwise(each, patch, isa, name), (x,), region,
        weights=channels.pack(each, found.codes, isa), bias=channels.arranged(each, bias, isa),
        multiplier=channels.arranged(each, multiplier, isa),
    )  # fmt: skip


def convolved(places: Places, region: Region, found: Contraction) -> Layer:
    """With what the kernel does behind the sums: a residual of codes, an addend of floats, a table."""
    isa, x = places.isa, places.plane(region.operands[0])
    now = ()
    if is_ranged(region.operands[0]):
        now = tuple(arguments(region.operands[0])[name].name for name in ("scale", "zero_point"))
    residual = None if region.residual is None else places.plane(region.residual)
    addend = None if region.addend is None else places.rows(region.addend)
    codes, groups = merged(found.codes, found.groups, isa)
    y = places.plane_of(region.result, 0)
    alone = Convolution(
        x=places.stores[x].plane, y=replace(y, pitch=pitch_of(y.channels)), groups=groups,
        kernel=codes.shape[2:], to_float=not region.returns_codes, table=False, **found.window,
        shifted=region.returns_codes and zero_point(places, region.result) != 0,
        residual=None if residual is None else places.stores[residual].plane,
        addend=None if addend is None else places.stores[addend].plane,
        ranged=bool(now), offset=bool(now) and region.bias is not None,
    )  # fmt: skip
    table = places.table_behind(region, alone)
    whole = replace(alone, y=places.result(table or region), table=table is not None)
    bias, multiplier = (filled(vector, whole, isa) for vector in numbers(places, region, found.codes))
    constants = {
        "weights": np.concatenate([pack(whole, codes, isa).reshape(-1), np.zeros(LINE, np.int8)]),
        "bias": bias, "multiplier": multiplier,
    }  # fmt: skip
    if whole.offset:
        constants["offset"] = filled(places.tensor(region.bias).float().numpy(), whole, isa)
    if region.residual is not None:
        ratio = scale(places, region.residual) / scale(places, region.result)
        offset = -places.tensor(arguments(region.residual)["zero_point"]).float() * ratio
        constants["ratio"] = np.array([ratio, offset], np.float32)
    if table is not None:
        constants["table"] = entries(places, table, table.operands[0])
    if whole.shifted:
        constants["zero"] = np.array([zero_point(places, region.result)], np.int32)
    planes = (*(name for name in (x, residual, addend) if name is not None), *now)
    tile = places.choose(whole)
    made = layer(
        "convolution", whole, lambda name: convolution(whole, tile, isa, name), planes,
        region, **constants,
    )  # fmt: skip
    return made if table is None else replace(made, results=(table.result.name,), regions=(region, table))


def numbers(places: Places, region: Region, codes: NDArray[np.int8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Bias, with the input's zero point in it, and multiplier of every output.

    Where the input's range is taken at run time, what its zero point and its scale are multiplied with.
    """
    assert region.weight is not None
    operand = region.operands[0]
    if is_ranged(operand):
        sums = codes.astype(np.int64).reshape(len(codes), -1).sum(1)
        return -sums.astype(np.int32), scale(places, region.weight).expand(len(codes)).numpy()
    bias = -zero_point(places, operand) * codes.astype(np.int64).reshape(len(codes), -1).sum(1)
    if region.bias is not None:
        bias = bias + places.tensor(arguments(region.bias)["q"]).numpy()
    steps = scale(places, operand) * scale(places, region.weight)
    if region.returns_codes:
        steps = steps / scale(places, region.result)
    return bias.astype(np.int32), steps.expand(len(codes)).numpy()


def reach(places: Places, region: Region, codes: NDArray[np.int8]) -> float:
    """How many steps a result may lie from zero, before it is saturated."""
    bias, multiplier = numbers(places, region, codes)
    sums = np.abs(codes.astype(np.float64)).reshape(len(codes), -1).sum(1) * 255 + np.abs(bias)
    own = float((sums * multiplier).max())
    if region.residual is None:
        return own
    return own + 255 * float(scale(places, region.residual) / scale(places, region.result))


def filled(vector: NDArray[Any], whole: Convolution, isa: Isa) -> NDArray[Any]:
    """A number per channel, and ones where registers hold channels that are not there."""
    outputs = len(vector) // whole.groups
    full = np.ones(-(-outputs // isa.lanes) * isa.lanes * whole.groups, vector.dtype)
    full[: len(vector)] = vector
    return full


# ---------------------------------------------------------------- pools


def max_pool(places: Places, region: Region) -> Layer | None:
    pool, x = sliding(places, region), places.plane(region.operands[0])
    if pool is None:
        return None
    return layer("maximum", ("max", pool), lambda name: pools.max_pool(pool, places.isa, name), (x,), region)


def average_pool(places: Places, region: Region) -> Layer | None:
    pool, given = sliding(places, region), arguments(region.anchor)
    if pool is None:
        return None
    average = pools.Average(
        count_include_pad=given["count_include_pad"],
        divisor=given.get("divisor_override"),
        x_zero=zero_point(places, region.operands[0]),
        y_zero=zero_point(places, region.result),
    )
    return layer(
        "average", ("average", pool, average),
        lambda name: pools.average_pool(pool, average, places.isa, name),
        (places.plane(region.operands[0]),), region,
        factor=(scale(places, region.operands[0]) / scale(places, region.result)).reshape(1).numpy(),
    )  # fmt: skip


def global_average(places: Places, region: Region) -> Layer | None:
    if region.operands[0] not in places.images:
        return None  # three axes of space
    name = places.plane(region.operands[0])
    x = places.stores[name].plane
    if x.pitch % places.isa.lanes:
        return None
    y = places.result(region)
    average = pools.Average(
        x_zero=zero_point(places, region.operands[0]), y_zero=zero_point(places, region.result)
    )
    steps = scale(places, region.result).double() * x.height * x.width
    return layer(
        "global average", ("global", x, y, average),
        lambda made: pools.global_average_pool(x, y, average, places.isa, made), (name,), region,
        factor=(scale(places, region.operands[0]).double() / steps).float().reshape(1).numpy(),
    )  # fmt: skip


def sliding(places: Places, region: Region) -> pools.Pool | None:
    """The window of a pool; None where the kernel does not take the plane."""
    given = arguments(region.anchor)
    flat = region.anchor.target in (aten.avg_pool1d.default, aten.max_pool1d.default)
    if len(shape_of(region.operands[0])) != (3 if flat else 4):
        return None  # not a batch of images, or of lines
    x = places.stores[places.plane(region.operands[0])].plane
    if x.pitch % places.isa.lanes:
        return None
    return pools.Pool(
        x=x, y=places.result(region), kernel=across(given["kernel_size"], flat, 1),
        stride=across(given["stride"] or given["kernel_size"], flat, 1),
        padding=across(given["padding"], flat, 0), dilation=across(given.get("dilation", 1), flat, 1),
    )  # fmt: skip


# ---------------------------------------------------------------- attention


def attention(places: Places, region: Region) -> Layer | None:
    given = arguments(region.anchor)
    (batch, queries, width), (_, keys, _) = (places.shapes[given[name]] for name in ("q", "k"))
    mask, strides = None, None
    if given["mask"] is not None:
        mask, strides = seen_through(given["mask"], places)
    q, k, v = map(places.plane, region.operands)
    zeros = [zero_point(places, node) for node in (region.operands[0], region.operands[2], region.result)]
    each = [heads.Operand(plane=places.stores[name].plane) for name in (q, k, v)]
    whole = heads.Attention(
        q=each[0], k=each[1], v=each[2], y=each[0], batch=batch, heads=given["heads"],
        kv_heads=given["kv_heads"], queries=queries, keys=keys, width=width // given["heads"],
        mask=strides, causal=given["causal"],
    )  # fmt: skip
    if not heads.takes(whole, places.isa):
        return None  # before the result has a place: the reference returns it elsewhere
    whole = replace(whole, y=heads.Operand(plane=places.result(region)))
    of_q, of_k, of_v = (
        coded(x, lambda node: places.tensor(node) if node.op == "get_attr" else None) for x in region.operands
    )
    steps = factors(of_q, of_k, of_v, output_of(region, places.graph), given["scale"])
    added = () if mask is None else (places.mask(mask),)
    return layer(
        "attention", whole, lambda name: heads.attention(whole, places.isa, name), (q, k, v, *added), region,
        numbers=torch.stack(steps).numpy(), zeros=np.array(zeros, np.int32),
    )  # fmt: skip


def seen_through(mask: Node, places: Places) -> tuple[Node, tuple[int, int, int, int]]:
    """What a mask is a repetition of, and its strides over [B, H, T, S]: 0 where it is repeated."""
    source = mask.args[0] if mask.target is aten.expand.default else mask
    assert isinstance(source, Node)
    shape = places.shapes[source]
    found, size = [], 1
    for extent in reversed(shape):
        found.append(0 if extent == 1 else size)
        size *= extent
    b, h, t, s = reversed([*found, 0, 0, 0, 0][:4])
    return source, (b, h, t, s)


# ---------------------------------------------------------------- by element


def add(places: Places, region: Region) -> Layer | None:
    """r_a, r_b and z_y - (r_a z_a + r_b z_b), as the reference forms them."""
    result = scale(places, region.result)
    (ratio_a, zero_a), (ratio_b, zero_b) = (
        (scale(places, x) / result, torch.tensor(float(zero_point(places, x)))) for x in region.operands
    )
    fixed = float(zero_point(places, region.result)) - multiply_add(zero_a, ratio_a, ratio_b * zero_b)
    steps = np.array([ratio_a, ratio_b, fixed], np.float32)
    return of_two(places, region, "sum", steps, lambda both, name: elements.add(both, places.isa, name), ())


def multiply(places: Places, region: Region) -> Layer | None:
    a, b, y = (zero_point(places, node) for node in (*region.operands, region.result))
    steps = np.array([scale(places, node) for node in (*region.operands, region.result)], np.float32)
    known = elements.Zeros(a=a, b=b, y=y)
    return of_two(
        places, region, "product", steps,
        lambda both, name: elements.multiply(both, known, places.isa, name), known,
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
    both = elements.Pair(a=first, b=second, y=places.result(region))
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
        "table", ("table", x, y), lambda made: elements.table(x, y, places.isa, made), (name,), region,
        table=entries(places, region, region.operands[0]),
    )  # fmt: skip


def entries(places: Places, region: Region, operand: Node) -> NDArray[np.uint8]:
    """What a region makes of each of the 256 codes of one operand, by its formula."""
    given = arguments(operand)
    every = Codes(
        values=torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 256),
        scale=places.tensor(given["scale"]),
        zero_point=places.tensor(given["zero_point"]), format=given["format"],
    )  # fmt: skip
    call = Call(
        operands=[every], weight=None, bias=None, op=region.anchor.target,  # type: ignore[arg-type]
        arguments={**arguments(region.anchor), "dim": 1}, output=output_of(region, places.graph),
    )  # fmt: skip
    if region.row.formula == "unary":
        kept = {
            name: value for name, value in arguments(region.anchor).items() if not isinstance(value, Node)
        }
        call = Call(operands=[every], weight=None, bias=None, op=call.op, arguments=kept, output=call.output)
    return np.asarray(FORMULAS[region.row.formula](call).reshape(-1).numpy())


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
        "concatenation", ("cat", inputs, y), lambda made: elements.concatenate(inputs, y, places.isa, made),
        tuple(names), region, **tables,
    )  # fmt: skip


# ---------------------------------------------------------------- shared


def layer(
    kernel: str, description: Any, make: Callable[[str], Any], planes: tuple[str, ...], region: Region,
    **constants: NDArray[Any],
) -> Layer:  # fmt: skip
    known = named(region, **constants)
    return Layer(
        kernel=kernel, description=description, make=make, arguments=(*planes, *known),
        results=(region.result.name,), constants=known, regions=(region,),
    )  # fmt: skip


def named(region: Region, **constants: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{region.anchor.name}.{kind}": array for kind, array in constants.items()}


def scale(places: Places, node: Node) -> Tensor:
    return places.tensor(arguments(node)["scale"]).float()


def shape_of(node: Node) -> list[str]:
    """A shape that can be compared: symbolic sizes by name."""
    found = spec(node)
    return [str(size) for size in found.shape] if found else []


def is_ranged(operand: Node) -> bool:
    """Whether scale and zero point are numbers of the call: the range is taken at run time."""
    return bool(arguments(operand)["scale"].op != "get_attr")


def zero_point(places: Places, node: Node) -> int:
    return int(places.tensor(arguments(node)["zero_point"]))


def pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, list | tuple) else [value]
    return int(first), int(rest[0] if rest else first)


def across(value: Any, flat: bool, still: int) -> tuple[int, int]:
    """Numbers of a window, down and across; along a line it stands still in the other direction."""
    return (still, pair(value)[0]) if flat else pair(value)


FAMILIES: Mapping[str, Callable[[Places, Region], Layer | None]] = {
    "conv": contraction,
    "linear": contraction,
    "attention": attention,
    "max_pool": max_pool,
    "avg_pool": average_pool,
    "global_avg_pool": global_average,
    "add": add,
    "mul": multiply,
    "unary": table,
    "concat": concatenate,
}
