"""The memory of a training step over time, both graphs one after the other, and the most at once.

    live(t) = bytes of the storages that exist at node t + what its operator needs inside
    peak    = max over t

A storage exists from the node that makes it to the last that reads it, through whatever view; what crosses
exists from forward into backward. Stored in few bits it exists in full up to its last use in forward, packed
from there to its first in backward, and in full again. Results stay, since whoever called holds them, and so
does each gradient from the node that makes it: parameters are taken to have none before. Gradients of results
die with their last use in backward. Parameters and inputs are not counted: they are there before the step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.scratch import Inside, scratch, strided


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes at the worst moment, the node where that is, and the bytes that cross into backward.

    left: bytes of results and gradients, which are there at the end whatever the plan.
    """

    bytes: int
    at: str
    crossing: int
    left: int


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The nodes from `start` up to `stop` that need nothing of a storage which crosses; who sees it there.

    copied: bytes that to store it takes, and to bring it back, where it does not lie row by row.
    """

    start: int
    stop: int
    bytes: int
    values: tuple[str, ...]
    copied: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """Bytes that are live at each node, forward's nodes before backward's, and the gaps in what crosses.

    left: bytes of results and gradients.
    """

    names: tuple[str, ...]
    live: NDArray[np.int64]
    gaps: tuple[Gap, ...]
    left: int = 0

    def stored(self, packed: Mapping[str, int]) -> NDArray[np.int64]:
        """The same with some values stored, each in so many bytes."""
        live = self.live.copy()
        for gap in self.gaps:
            if all(name in packed for name in gap.values):
                bytes_ = sum(packed[name] for name in gap.values)
                live[gap.start : gap.stop] += bytes_ - gap.bytes
                live[[gap.start - 1, min(gap.stop, len(live) - 1)]] += bytes_ + gap.copied  # both forms
        return live

    def peak(self, packed: Mapping[str, int] | None = None) -> Peak:
        live = self.stored(packed or {})
        worst = int(live.argmax())
        crossing = sum(
            sum(packed[name] for name in gap.values)
            if packed and all(name in packed for name in gap.values)
            else gap.bytes
            for gap in self.gaps
        )
        return Peak(bytes=int(live[worst]), at=self.names[worst], crossing=crossing, left=self.left)


def peak(halves: Halves) -> Peak:
    """The peak of a step that runs both halves in the order of their graphs."""
    return timeline(halves).peak()


def timeline(halves: Halves, inside: Inside = scratch) -> Timeline:
    """What lives when. Values have to be finished, for views to tell of their storages."""
    forward, backward = list(halves.forward.graph.nodes), list(halves.backward.graph.nodes)
    nodes = [*forward, *backward]
    crossing = storages(halves.crossing)
    ignored = storages(node for node in forward if node.op == "placeholder")
    results = storages(halves.results[: halves.outputs])
    touched = [storages([node, *node.all_input_nodes]) for node in nodes]
    touched[-1] |= results  # beside gradients, which backward's last node reads
    uses: dict[int, list[int]] = {key: [] for key in crossing if key not in ignored | results}
    for place, node in enumerate(nodes):
        for key in touched[place].keys() & uses.keys() if node.op == "call_function" else ():
            uses[key].append(place)
    gaps = []
    for key, places in uses.items():
        values = [value for value in halves.crossing if key in storages([value])]
        gaps.append(
            Gap(
                start=max(place for place in places if place < len(forward)) + 1,
                stop=min((place for place in places if place >= len(forward)), default=len(forward)),
                bytes=crossing[key],
                values=tuple(value.name for value in values),
                copied=max(strided(value.meta["val"]) for value in values),
            )
        )
    needed = np.array([inside(node) for node in nodes], dtype=np.int64)
    return Timeline(
        names=tuple(node.name for node in nodes), live=lifetimes(nodes, touched, ignored) + needed,
        gaps=tuple(gaps), left=sum(size for key, size in touched[-1].items() if key not in ignored),
    )  # fmt: skip


def lifetimes(
    nodes: Sequence[Node], touched: Sequence[Mapping[int, int]], ignored: Mapping[int, int]
) -> NDArray[np.int64]:
    """Bytes that are live at each node: a storage from the first node that touches it to the last."""
    end: dict[int, int] = {}  # of a storage, as far as the walk has come
    change = np.zeros(len(nodes) + 1, dtype=np.int64)
    for place, sizes in enumerate(touched):
        for key, size in sizes.items():
            if key not in ignored:
                change[end.get(key, place)] += size
                end[key] = place + 1
                change[place + 1] -= size
    live: NDArray[np.int64] = np.cumsum(change)[:-1]
    return live


def storages(values: Iterable[Any]) -> dict[int, int]:
    """Bytes of every storage that some values lie in."""
    found = {}
    for node in values:
        for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(node, Node) else ():
            if isinstance(leaf, Tensor):
                memory = leaf.untyped_storage()
                found[memory._cdata] = memory.nbytes()
    return found
