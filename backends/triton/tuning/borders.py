"""From how many rows on another contender is the faster: by bisection between buckets that disagree."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

Fastest = Callable[[int], str]
"""The name of the fastest contender for so many rows, measured when asked."""

GRAIN = 16  # rows: products of fewer than a tile has cost the same


def borders(fastest: Fastest, buckets: Sequence[int], *, grain: int = GRAIN) -> tuple[list[int], list[str]]:
    """Where contenders begin, and their names: one name more than borders, and neighbours differ.

    buckets ascend. Between two that disagree the number of rows is halved until `grain` of them are left,
    which go with the larger bucket, as all rows do by themselves; a third contender is found where a probe
    meets it.
    """
    starts, names = list[int](), [fastest(buckets[0])]
    for low, high in pairwise(buckets):
        for start, name in changes(fastest, low, high, grain):
            starts.append(start)
            names.append(name)
    return starts, names


def changes(fastest: Fastest, low: int, high: int, grain: int) -> Iterator[tuple[int, str]]:
    """Each number of rows in (low, high] from which on another contender is the faster."""
    if fastest(low) == fastest(high):
        return
    if high - low <= grain:
        yield low + 1, fastest(high)
        return
    middle = (low + high) // 2
    yield from changes(fastest, low, middle, grain)
    yield from changes(fastest, middle, high, grain)
