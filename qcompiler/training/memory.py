"""What a training step may keep for backward, as the user says it.

"keep"                  everything as it is
"act8", "act4", "act2"  every value in that many bits, in more where the way it is read needs more
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.errors import RecipeError
from qcompiler.passes.training.saved import Saved

BITS = {"keep": None, "act8": 8, "act4": 4, "act2": 2}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The fewest bits for a value that crosses from forward to backward; None keeps all as they are."""

    bits: int | None = None

    @property
    def name(self) -> str:
        return next(name for name, bits in BITS.items() if bits == self.bits)

    @property
    def tolerance(self) -> float:
        """How far the gradient of one draw may be from float's: some three times what transformers show."""
        return {None: 1e-6, 8: 0.02, 4: 0.2, 2: 1.0}[self.bits]

    def choose(self, values: Sequence[Saved]) -> dict[str, int]:
        """Bits for each value that is stored: the fewest that serve it and are not below `bits`."""
        if self.bits is None:
            return {}
        return {value.name: fewest(value.bits, self.bits) for value in values if value.bits}


def fewest(allowed: Sequence[int], wanted: int) -> int:
    """Of the bits that may hold a value, those wanted or the next more; masks and indices have no choice."""
    return min((bits for bits in allowed if bits >= wanted), default=max(allowed))


def find_memory(memory: str | Memory) -> Memory:
    """A setting by its name, or itself."""
    if isinstance(memory, Memory):
        return memory
    if memory not in BITS:
        raise RecipeError(f"memory is {memory!r}", fix=f"use one of {', '.join(BITS)}")
    return Memory(bits=BITS[memory])
