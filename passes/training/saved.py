"""What crosses from forward to backward, and the bits that may hold it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir.storage import stored_bytes
from qcompiler.passes.training.contexts import readings
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.joint import base, dependent, origin, tangents
from qcompiler.passes.training.pools import index_bits

SMALLEST = 1024  # elements; below, bounds and calls outweigh what is saved
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MASK = 1  # bits of what is 0 or 1


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A tensor that backward reads from forward.

    `bits` are those that may hold it: (1,) for a mask, the fewest for an index, and () where it is kept as it
    is, because `why`. What `is_held` takes no memory of its own: parameters, inputs and results are
    there anyway.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_held: bool = False
    bits: tuple[int, ...] = ()
    why: str = ""

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()

    def bytes(self, bits: int | None = None) -> int:
        """What it takes in so many bits, bounds included; None keeps it as it is."""
        return (
            self.count * self.dtype.itemsize if bits is None else stored_bytes(self.count, self.dtype, bits)
        )


def saved(halves: Halves) -> tuple[Saved, ...]:
    """Every tensor that crosses, in order."""
    handed = {base(node) for node in halves.results[: halves.outputs] if isinstance(node, Node)}
    late = dependent(halves.backward.graph, tangents(halves.backward.graph))
    return tuple(described(node, halves, handed, late) for node in halves.crossing)


def described(node: Node, halves: Halves, handed: set[Node], late: set[Node]) -> Saved:
    bits: tuple[int, ...]
    owner = owned(base(node), handed, halves.parameters)
    if owner:
        bits, why = (), owner
    elif origin(node).name in halves.parameters:  # which autocast made
        bits, why = (), "it is a parameter's cast: noise in it is in every gradient before it"
    else:
        bits, why = fitting(node, halves.received(node), late)
    value: Tensor = node.meta["val"]
    return Saved(
        name=node.name, shape=tuple(value.shape), dtype=value.dtype, is_held=bool(owner), bits=bits, why=why
    )


def is_rounded(value: Node) -> bool:
    """Whether a value, or what it views, would be stored with an error; statistics and inputs are exact."""
    whole = base(value)
    x = whole.meta.get("val")
    if whole.op != "call_function" or not isinstance(x, Tensor) or x.dtype not in FLOATS:
        return False
    known = all(isinstance(length, int) for length in x.shape)
    return known and x.dim() > 0 and x.shape[-1] > 1 and x.numel() >= SMALLEST


def owned(origin: Node, handed: set[Node], parameters: frozenset[str]) -> str:
    """Who holds a tensor anyway, in words; "" where nobody does but the step."""
    if origin.op == "placeholder":
        return f"it is {'a parameter' if origin.name in parameters else 'an input'}, which is there anyway"
    return "it is a result, which whoever called holds" if origin in handed else ""


def fitting(node: Node, arrival: Node, late: set[Node]) -> tuple[tuple[int, ...], str]:
    """The bits that may hold a value, or why none may."""
    value: Tensor = node.meta["val"]
    if not all(isinstance(length, int) for length in value.shape):
        return (), "its shape is symbolic; compile with dynamic=False to store it"
    if value.dtype == torch.bool:
        return (MASK,), ""
    if (bits := index_bits(node)) is not None:
        return (bits,), ""
    if value.dtype.is_floating_point and value.dtype.itemsize > 4:
        return (), "it is float64, and what is stored is at most float32"
    if value.dtype not in FLOATS:
        return (), f"it is {str(value.dtype).removeprefix('torch.')}: an index, a state or few bits already"
    if not value.dim() or value.shape[-1] == 1:
        return (), "it is a statistic, one number per row"
    if value.numel() < SMALLEST:
        return (), f"it has fewer than {SMALLEST:,} elements"
    widths = readings(arrival, late)
    return widths, "" if widths else "no error may enter: it is a mask, or everything else is scaled with it"
