"""The memory of a training step over time, both graphs one after the other, and the most at once.

    live(t) = bytes of the storages that exist at node t        peak = max over t

A storage exists from the node that makes it to the last that reads it, through whatever view; what crosses
exists from forward into backward. Stored in few bits it exists in full up to its last use in forward, packed
from there to its first in backward, and in full again. Parameters, inputs, results and gradients are not
counted: they are there, or have to be, whatever the plan. What an operator needs inside is not known.
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


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes at the worst moment, the node where that is, and the bytes that cross into backward."""

    bytes: int
    at: str
    crossing: int


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The nodes from `start` up to `stop` that need nothing of a storage which crosses; who sees it there."""

    start: int
    stop: int
    bytes: int
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """Bytes that are live at each node, forward's nodes before backward's, and the gaps in what crosses."""

    names: tuple[str, ...]
    live: NDArray[np.int64]
    gaps: tuple[Gap, ...]

    def stored(self, packed: Mapping[str, int]) -> NDArray[np.int64]:
        """The same with some values stored, each in so many bytes."""
        live = self.live.copy()
        for gap in self.gaps:
            if all(name in packed for name in gap.values):
                bytes_ = sum(packed[name] for name in gap.values)
                live[gap.start : gap.stop] += bytes_ - gap.bytes
                live[[gap.start - 1, min(gap.stop, len(live) - 1)]] += bytes_  # where both forms exist
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
        return Peak(bytes=int(live[worst]), at=self.names[worst], crossing=crossing)


def peak(halves: Halves) -> Peak:
    """The peak of a step that runs both halves in the order of their graphs."""
    return timeline(halves).peak()


def timeline(halves: Halves) -> Timeline:
    """What lives when. Values have to be finished, for views to tell of their storages."""
    forward, backward = list(halves.forward.graph.nodes), list(halves.backward.graph.nodes)
    nodes = [*forward, *backward]
    crossing = storages(halves.crossing)
    arrivals = {halves.received(value) for value in halves.crossing}
    others = [node for node in nodes if node.op == "placeholder" and node not in arrivals]
    ignored = storages([*others, *halves.results[: halves.outputs], *backward[-1].all_input_nodes])
    touched = [storages([node, *node.all_input_nodes]) for node in nodes]
    uses: dict[int, list[int]] = {key: [] for key in crossing if key not in ignored}
    for place, node in enumerate(nodes):
        for key in touched[place].keys() & uses.keys() if node.op == "call_function" else ():
            uses[key].append(place)
    gaps = [
        Gap(
            start=max(place for place in places if place < len(forward)) + 1,
            stop=min((place for place in places if place >= len(forward)), default=len(forward)),
            bytes=crossing[key],
            values=tuple(value.name for value in halves.crossing if key in storages([value])),
        )
        for key, places in uses.items()
    ]
    return Timeline(
        names=tuple(node.name for node in nodes), live=lifetimes(nodes, touched, ignored), gaps=tuple(gaps)
    )


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
