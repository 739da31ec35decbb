"""Integer formats: a number of bits, a sign, and whether the lowest code is left out."""

from dataclasses import dataclass

import torch

from qcompiler.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class IntFormat:
    """The integers qmin .. qmax, of 2 to 16 bits, or 32 bits for a bias.

    unsigned             0 .. 2^b - 1
    signed        -2^(b-1) .. 2^(b-1) - 1
    restricted  -2^(b-1)+1 .. 2^(b-1) - 1        closed under negation
    """

    bits: int
    signed: bool
    restricted: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise RecipeError(
                f"no integer format of {self.bits} bits", fix="use 2 to 16 bits, or 32 for a bias"
            )
        if self.bits == 32 and not self.signed:
            raise RecipeError(
                "no unsigned 32-bit format", why="32 bits hold a bias, which is signed", fix="use int32"
            )
        if self.restricted and not self.signed:
            raise RecipeError(
                "an unsigned format cannot be restricted", why="only the lowest signed code is left out"
            )

    @property
    def name(self) -> str:
        """Such as "int8" or "uint4"; a restricted format keeps the name."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1)) + self.restricted if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def storage(self) -> torch.dtype:
        """The narrowest torch type that holds every code and has full operator support.

        Codes of uint16 live in int32: torch can hold uint16 but hardly compute with it. Narrow
        formats take a whole byte here; `packing` puts them together.
        """
        if self.bits <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int16 if self.qmax <= 2**15 - 1 else torch.int32

    def __str__(self) -> str:
        return f"{self.name}(restricted)" if self.restricted else self.name
