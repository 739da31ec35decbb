"""The least and the largest of the numbers that a turn of a loop sees, 0 among them, lane by lane.

    lo[t], hi[t] = min(0, x ..), max(0, x ..)        in a register each

What computes floats finds them as it goes, so that no range needs a pass of its own; threads that divide
turns need not know of each other. Of NaN they are anything.
"""

from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.lanes import across, tree
from qcompiler.backends.tvm.plane import Plane

KINDS = tirx.min, tirx.max


def extremes_of(turns: int, isa: Isa) -> Plane:
    """Where they lie: a register of the least and one of the largest numbers, turn by turn."""
    return Plane(images=1, height=1, width=turns, channels=2 * isa.lanes, pitch=2 * isa.lanes)


class Extremes:
    """Both registers of the turn under way; where the numbers go becomes an argument here."""

    def __init__(self, k: Builder, isa: Isa, turns: int) -> None:
        self.k, self.lanes = k, isa.lanes
        self.found = k.argument("extremes", "float32", extremes_of(turns, isa).size)
        self.registers = [k.register("float32", isa.lanes) for _ in KINDS]
        self.begin()

    def begin(self) -> None:
        for register in self.registers:
            self.k.store(register, 0, splat(0.0, "float32", self.lanes), self.lanes)

    def see(self, values: list[Any]) -> None:
        """Vectors that have registers, with zeros where they have no numbers."""
        k, lanes = self.k, self.lanes
        for register, joined in zip(self.registers, KINDS, strict=True):
            found = tree(k, values, joined, "float32", lanes)
            k.store(register, 0, joined(k.load(register, 0, lanes), found), lanes)

    def end(self, turn: Any) -> None:
        for place, register in enumerate(self.registers):
            at = (2 * turn + place) * self.lanes
            self.k.store(self.found, at, self.k.load(register, 0, self.lanes), self.lanes)
        self.begin()


def whole_range(k: Builder, found: Any, turns: int, lanes: int) -> tuple[Any, Any]:
    """The least and the largest of all turns, in every lane."""
    registers = k.register("float32", lanes), k.register("float32", lanes)
    for register in registers:
        k.store(register, 0, splat(0.0, "float32", lanes), lanes)
    with k.loop(turns) as turn:
        for place, (register, joined) in enumerate(zip(registers, KINDS, strict=True)):
            held = k.load(found, (2 * turn + place) * lanes, lanes)
            k.store(register, 0, joined(k.load(register, 0, lanes), held), lanes)
    lo, hi = (
        across(k, k.load(register, 0, lanes), "float32", lanes, joined)
        for register, joined in zip(registers, KINDS, strict=True)
    )
    return lo, hi
