"""What families of layers are made of: places that the lowering gives, and the layer that is called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.reference import output_of
from qcompiler.backends.reference.formulas import FORMULAS
from qcompiler.backends.reference.kernels import Call, Codes
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.schedules import Choose
from qcompiler.ir import Graph, arguments, spec
from qcompiler.passes.partition import Region
from qcompiler.passes.profit import Fusion
from qcompiler.target import Target


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
    def first(self, value: Node, plane: Plane, last: int) -> str: ...
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


def by_rows(places: Places, region: Region) -> bool:
    """Whether nothing that a region reads or returns is an image, whose last axis is a line of pixels."""
    read = (*region.operands, region.residual, region.addend)
    return not any(node in places.images for node in (*read, region.result, region.anchor))


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
