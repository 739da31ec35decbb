"""The schedule of a float function without measurement.

    for i, j: a = ..    for i, k: s += a ..    for i, j: y = .. s[i]
    -->  for i: { for j: a = ..    for k: for lanes: s += a ..    for j: y = .. s[i] }

What is stored between two ops is a row that stays near; sums run over the lanes of a register or over the
last axis of their result; LLVM makes vectors of the inner loops.
"""

import math
from collections.abc import Sequence
from typing import Any

from tvm import s_tir
from tvm.tirx import IterVar

ROW = 1 << 15  # numbers that are stored for one row: 128 KB, which a second cache holds with what is read
VECTOR = 16  # the loop that is made one vector by us and not by LLVM


def scheduled(function: Any, names: Sequence[str]) -> Any:
    """`names` of what the function stores, in the order of its computation; the last is a result."""
    schedule = s_tir.Schedule(function)
    rows = shared_rows(schedule, names)
    if rows:
        by_row(schedule, names, rows)
    for name in names:
        inner_loops(schedule, name, rows)
    return schedule.mod["main"].with_attr("global_symbol", str(function.attrs["global_symbol"]))


def by_row(schedule: Any, names: Sequence[str], rows: int) -> None:
    """All in the rows of the last result, but other results and what they read."""
    place = schedule.get_loops(schedule.get_sblock(names[-1]))[rows - 1]
    within, results = {names[-1]}, named(schedule, schedule.get_output_blocks("root"))
    for name in reversed(names[:-1]):
        block = schedule.get_sblock(name)
        if name not in results and named(schedule, schedule.get_consumers(block)) <= within:
            schedule.compute_at(block, place)
            within.add(name)


def named(schedule: Any, blocks: Sequence[Any]) -> set[str]:
    return {str(schedule.get(block).name_hint) for block in blocks}


def inner_loops(schedule: Any, name: str, rows: int) -> None:
    """Of a sum: its own loops outside, that of the last axis of its result inside, its start before all.

    The first `rows` loops may be those of other blocks, too.
    """
    block = schedule.get_sblock(name)
    variables = schedule.get(block).iter_vars
    count = sum(int(variable.iter_type) == IterVar.CommReduce for variable in variables)
    if not count:
        return
    loops = schedule.get_loops(block)
    spatial, sums = loops[:-count], loops[-count:]
    last = spatial[-1] if len(spatial) > rows else None
    size = 1 if last is None else int(variables[-count - 1].dom.extent)
    inside = last is not None and 1 < size == int(schedule.get(last).extent)
    if inside:
        schedule.reorder(*sums, last)
    if inside and size == VECTOR:
        schedule.vectorize(last)
    schedule.decompose_reduction(block, sums[0])


def shared_rows(schedule: Any, names: Sequence[str]) -> int:
    """How many leading axes all have in common: each reads of the others only what lies in its own row."""
    blocks = [schedule.get(schedule.get_sblock(name)) for name in names]
    shapes = [spatial_sizes(block) for block in blocks]
    rows = min(len(shapes[-1]) - 1, *map(len, shapes))
    for block, shape in zip(blocks, shapes, strict=True):
        rows = min(rows, common(shape, shapes[-1]))
        for read in block.reads:
            if str(read.source.name) in names:  # what is stored is named as the block that stores it
                rows = min(rows, aligned(read.region, block.iter_vars))
    largest = max(math.prod(shape[rows:]) for shape in shapes)
    return rows if len(names) > 1 and largest <= ROW else 0


def spatial_sizes(block: Any) -> list[int]:
    return [int(each.dom.extent) for each in block.iter_vars if int(each.iter_type) != IterVar.CommReduce]


def common(shape: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b), len(shape))


def aligned(region: Sequence[Any], variables: Sequence[Any]) -> int:
    """How many of the first places are the axes of the reader themselves."""
    count = 0
    for place, variable in zip(region, variables, strict=False):
        if not place.min.same_as(variable.var):
            break
        count += 1
    return count
