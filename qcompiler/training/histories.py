"""The largest magnitudes of operands in the steps before, from which delayed scaling takes its scales.

An operand is known by the parameter, role and side of the product that reads it first: graphs of one model
for several shapes share its history. Each pass, forward or backward, that sees an operand adds one entry.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.numerics.scaling import remember_amax


class Histories:
    """float32 [operands, window], the latest magnitude first; 0 where there was none yet."""

    def __init__(self, window: int) -> None:
        self.rows: dict[str, int] = {}
        self.magnitudes = torch.zeros(0, window)

    def find(self, names: Sequence[str]) -> list[int]:
        """The rows of operands, made where there are none."""
        for name in names:
            self.rows.setdefault(name, len(self.rows))
        fresh = len(self.rows) - len(self.magnitudes)
        empty = self.magnitudes.new_zeros(fresh, self.magnitudes.shape[1])
        self.magnitudes = torch.cat((self.magnitudes, empty))
        return [self.rows[name] for name in names]

    def seen(self, rows: Sequence[int]) -> Tensor:
        """The largest magnitude of each operand within its window, float32 [rows]."""
        return self.magnitudes[list(rows)].amax(1)

    def remember(self, rows: Sequence[int], magnitudes: Sequence[Tensor]) -> None:
        """One step more; on the device where the magnitudes are, without waiting for it."""
        given = torch.stack([*magnitudes])
        if self.magnitudes.device != given.device:
            self.magnitudes = self.magnitudes.to(given.device)
        self.magnitudes[list(rows)] = remember_amax(self.magnitudes[list(rows)], given)

    def state(self) -> dict[str, Tensor]:
        """A copy of every history, by the name of its operand."""
        return {name: self.magnitudes[row].cpu() for name, row in self.rows.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Histories as they were; operands that are not among them begin anew. Raises InputError."""
        window = self.magnitudes.shape[1]
        for name, history in state.items():
            if history.shape != (window,):
                raise InputError(
                    f"the history of '{name}' is of {len(history)} steps",
                    why=f"the recipe's window is {window}",
                    fix="use the recipe with which it was saved",
                )
        rows = self.find([*state])
        self.magnitudes.zero_()
        for row, history in zip(rows, state.values(), strict=True):
            self.magnitudes[row] = history.to(self.magnitudes)
