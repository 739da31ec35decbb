"""Steps of a decoder with nothing of torch in them: what is not compiled is a few numbers.

tokens, start, gather, first, main(calls), take   -->   rows copied, a number written, main(calls)
tokens, start, gather, first, lend, main(calls)   -->   the same

Between two steps the weights pass through every cache, so that what Python runs next comes from memory, line
by line: an op of torch that takes 1 us in a loop takes 50 to 130 there (Zen 4), and a step had nine of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.tvm.arena import owner
from qcompiler.backends.tvm.build import ALIGNMENT, handed
from qcompiler.backends.tvm.program import Call, Enter, First, Gather, Leave, Lend, Take
from qcompiler.backends.tvm.ready import Ready
from qcompiler.errors import InputError
from qcompiler.ir import Graph

AT_ONCE = 16  # results that are allocated together: after the first, one more takes a tenth as long


@dataclass(kw_only=True)
class Direct:
    """One step, or several tokens at a time; `ready` keeps the memory that functions find.

    table: the embedding [entries, width], one row after the other. rows: where its rows go, `apart` numbers
    from one to the next. start: the position as functions read it. shape, pitch: of the result, which
    functions write by row. at: where they find the address of its memory. spare: tensors that nobody has had
    yet, with their addresses.
    """

    ready: Ready
    table: memoryview
    width: int
    rows: memoryview
    apart: int
    start: memoryview
    calls: Callable[[], None]
    shape: tuple[int, ...]
    pitch: int
    addresses: memoryview
    at: int
    spare: list[tuple[Tensor, int]] = field(default_factory=list)

    def __call__(self, tokens: Sequence[int], start: int) -> Tensor:
        width, to = self.width, 0
        for token in tokens:
            begin = token * width
            if not 0 <= begin < len(self.table):
                raise InputError(
                    f"{token} is no token", fix="give tokens of the decoder's own vocabulary",
                    why=f"its table has entries 0 .. {len(self.table) // width - 1}",
                )  # fmt: skip
            self.rows[to : to + width] = self.table[begin : begin + width]
            to += self.apart
        self.start[0] = start
        if not self.spare:
            fresh = [self.fresh() for _ in range(AT_ONCE)]
            self.spare = [(each, each.data_ptr()) for each in fresh]
        result, self.addresses[self.at] = self.spare.pop()
        self.calls()
        return result

    def fresh(self) -> Tensor:
        """Memory for a result; functions write whole registers."""
        *rows, channels = self.shape
        if channels == self.pitch:
            return torch.empty(self.shape)
        return torch.empty(math.prod(rows), self.pitch)[:, :channels].view(self.shape)


def direct(ready: Ready, graph: Graph) -> Direct | None:
    """A program whose cache stays where it is, without torch; None where torch computes something in it."""
    kept = [step for step in ready.program.steps if not isinstance(step, Enter | Leave)]
    calls = [step for step in kept if isinstance(step, Call)]
    match [step for step in kept if not isinstance(step, Call)]:
        case [Gather() as gather, First() as first, (Take() | Lend()) as made]:
            pass
        case _:
            return None
    known = (gather.indices, first.node, made.node) == (*graph.inputs[:2], graph.results[0])
    written = by_row(ready, made)
    if not known or written is None:
        return None
    name, pitch = written
    touched = [call for call in calls if name in {owner_of(ready, given) for given in call.arguments}]
    last = touched == calls[-1:] and calls[-1].arguments[-1] == name
    table = ready.constants[gather.table]
    aligned = torch.empty(made.shape).data_ptr() % ALIGNMENT == 0
    if not (last and aligned and table.dtype == torch.float32):
        return None
    view: Callable[[Any], memoryview] = memoryview  # whose type knows no arrays
    return Direct(
        ready=ready, table=view(table.detach().contiguous().view(-1).numpy()), width=table.shape[1],
        rows=view(ready.arrays[gather.name]), apart=gather.store.plane.pitch,
        start=view(ready.arrays[first.name]), shape=made.shape, pitch=pitch,
        calls=partial(ready.code.run, handed(ready.addresses), 0, len(calls)),
        addresses=view(ready.addresses), at=ready.code.places[name],
    )  # fmt: skip


def by_row(ready: Ready, made: Take | Lend) -> tuple[str, int] | None:
    """What functions call the memory of a result, and how far apart its rows lie; None if it is no rows."""
    if isinstance(made, Lend):
        return made.name, made.shape[-1]
    name = owner_of(ready, made.name)
    plane = ready.program.stores[name].plane
    are_rows = made.store.dtype == "float32" and not (plane.border or made.store.is_image)
    side_by_side = plane.pitch == plane.channels or math.prod(made.shape[:-1]) == 1
    return (name, plane.pitch) if are_rows and side_by_side else None


def owner_of(ready: Ready, name: str) -> str:
    return owner(ready.program.stores, name) if name in ready.program.stores else name
