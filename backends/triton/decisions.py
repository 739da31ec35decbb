"""Which kernel computes a linear, by the number of its rows: a value that can be printed, saved and replayed.

    float, from 16 int8_linear, from 4096 int_mm

The name of each way and the number of rows from which on it is taken:

    choose(M) = names[i]        i = how many borders are at most M
"""

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from qcompiler.backends.triton.layouts import LAYOUTS
from qcompiler.errors import InputError

NAME = r"[A-Za-z]\w*"


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """names[0] below borders[0], names[1] from there on, and so on; borders ascend, and are at least 1.

    measured: whether a device has shown it; else it is what one would expect.
    """

    borders: tuple[int, ...] = ()
    names: tuple[str, ...]
    measured: bool = False

    def __post_init__(self) -> None:
        ascend = all(low < high for low, high in pairwise((0, *self.borders)))
        if len(self.names) != len(self.borders) + 1 or not ascend:
            raise InputError(
                f"decisions for {len(self.names)} kernels with borders {list(self.borders)}",
                why="there is one kernel more than borders, and borders ascend from 1 on",
            )
        unnamed = next((name for name in self.names if not re.fullmatch(NAME, name)), None)
        if unnamed is not None:
            raise InputError(f"decisions for a kernel '{unnamed}'", why="a name is one word")

    def choose(self, rows: int) -> str:
        return self.names[bisect_right(self.borders, rows)]

    def __str__(self) -> str:
        later = (f"from {border} {name}" for border, name in zip(self.borders, self.names[1:], strict=True))
        return ", ".join((self.names[0], *later))


def parse_decisions(text: str, *, measured: bool = False) -> Decisions:
    """The inverse of `str`."""
    first, *later = text.split(", ")
    found = [re.fullmatch(rf"from ([1-9]\d*) ({NAME})", part) for part in later]
    if not re.fullmatch(NAME, first) or not all(found):
        raise InputError(f"decisions '{text[:80]}'", why="they read like 'float, from 16 int8_linear'")
    known = [match for match in found if match]
    return Decisions(
        borders=tuple(int(match[1]) for match in known),
        names=(first, *(match[2] for match in known)),
        measured=measured,
    )


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The linears that decide alike: codes of a format, in blocks too, or of a layout of few bits, [N, K].

    out: the type of the result. heavy: whether an activation or a residual goes with it. zeros: whether
    groups have zero points. gated: whether it gates another of the same sizes, in a weight of 2 N rows.
    """

    format: str
    N: int
    K: int
    out: str = "bf16"
    heavy: bool = False
    zeros: bool = False
    gated: bool = False

    def __str__(self) -> str:
        words = "".join(f" {word}" for word in ("heavy", "zeros", "gated") if getattr(self, word))
        return f"{self.format} {self.N}x{self.K} {self.out}{words}"


Table: TypeAlias = Mapping[Linear, Decisions]

DEFAULT: Mapping[str, Decisions] = {
    "int8": Decisions(borders=(16,), names=("float", "int8_linear")),
    "e4m3": Decisions(borders=(16,), names=("float", "fp8_linear")),
    "e4m3b128": Decisions(borders=(16,), names=("float", "fp8_block_linear")),
    **{name: Decisions(names=("weight_only_linear",)) for name in LAYOUTS},
}
"""By format, where nothing was measured: tensor cores take 16 rows at a time, and weights of few bits are
there to save memory, which a decoded copy would undo."""
