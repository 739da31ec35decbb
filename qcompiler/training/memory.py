"""What a training step may keep for backward, as the user says it.

    "keep"                  everything as it is
    "act8", "act4", "act2"  every value in that many bits, in more where the way it is read needs more
    0.5                     a peak of half of what float needs
    2_000_000_000           a peak of so many bytes

For a peak, bits are planned, and what is computed again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.errors import RecipeError
from qcompiler.passes.training.saved import Saved

BITS = {"keep": None, "act8": 8, "act4": 4, "act2": 2}
FEWEST_BYTES = 1024  # below, bits or a share were meant
PLANNED = 0.2  # how far gradients of a planned step may be from float's: as in 4 bits


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The fewest bits for every value that crosses into backward, or a budget for the peak of a step.

    bits: None keeps all as they are. budget: bytes from 1 on, a share of what float needs below.
    """

    bits: int | None = None
    budget: float | None = None

    @property
    def name(self) -> str:
        if self.budget is not None:
            return f"{self.budget:.0%} of float" if self.budget < 1 else f"{self.budget:,.0f} bytes"
        return next(name for name, bits in BITS.items() if bits == self.bits)

    @property
    def tolerance(self) -> float:
        """How far the gradient of one draw may be from float's: some three times what transformers show."""
        return PLANNED if self.budget is not None else {None: 1e-6, 8: 0.02, 4: 0.2, 2: 1.0}[self.bits]

    def allowed(self, peak: int) -> int:
        """The budget in bytes, of a step whose peak is so large."""
        assert self.budget is not None
        return int(self.budget * peak) if self.budget < 1 else int(self.budget)

    def choose(self, values: Sequence[Saved]) -> dict[str, int]:
        """Bits for each value that is stored: the fewest that serve it and are not below `bits`."""
        if self.bits is None:
            return {}
        return {value.name: fewest(value.bits, self.bits) for value in values if value.bits}


def fewest(allowed: Sequence[int], wanted: int) -> int:
    """Of the bits that may hold a value, those wanted or the next more; masks and indices have no choice."""
    return min((bits for bits in allowed if bits >= wanted), default=max(allowed))


def find_memory(memory: str | float | Memory) -> Memory:
    """A setting by its name, a share of what float needs, a number of bytes, or itself; "0.5" is 0.5."""
    if isinstance(memory, Memory):
        return memory
    memory = number(memory) if isinstance(memory, str) else memory
    if isinstance(memory, int | float) and not isinstance(memory, bool) and 0 < memory < math.inf:
        if 1 <= memory < FEWEST_BYTES:
            raise RecipeError(
                f"memory is {memory:g}, which is so many bytes",
                why="no step fits into them",
                fix=f"for 4 bits say 'act4', for a share of what float needs a number below 1, and for bytes "
                f"one from {FEWEST_BYTES} on",
            )
        return Memory(budget=memory)
    if not isinstance(memory, str) or memory not in BITS:
        raise RecipeError(
            f"memory is {memory!r}",
            fix=f"use one of {', '.join(BITS)}, a share of what float needs (0.5), or a number of bytes",
        )
    return Memory(bits=BITS[memory])


def number(written: str) -> str | float:
    """A number where one is written."""
    try:
        return float(written)
    except ValueError:
        return written
