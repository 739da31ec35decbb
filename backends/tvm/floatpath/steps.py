"""The ops that torch would compute between our kernels, in groups, as calls of functions where that pays.

[.., Compute(a), Compute(b), Call, ..]  -->  [.., Floats(a, b), Call, ..]
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch.fx import Node

from qcompiler.backends.tvm.floatpath.choice import TORCH, checked, chosen, made
from qcompiler.backends.tvm.floatpath.group import Group, Shapes, groups
from qcompiler.backends.tvm.floatpath.step import Floats
from qcompiler.backends.tvm.program import Compute, Step, reads
from qcompiler.errors import TuningError

KERNEL = "tvm float"  # what an op of a group is computed by, as reports call it


def groups_of(steps: Sequence[Step], returned: Collection[Node], shapes: Shapes) -> list[Group]:
    events = [
        (step.node, step.node.all_input_nodes) if isinstance(step, Compute) else (None, reads(step))
        for step in steps
    ]
    return groups(events, returned, shapes)


def with_functions(
    steps: Sequence[Step], returned: Collection[Node], shapes: Shapes, measured: Mapping[str, str],
    function: Callable[[Any, Callable[[str], Any]], str],
) -> tuple[Step, ...]:  # fmt: skip
    """`measured`: workload -> the best configuration; `function`: a name for what a description makes."""
    calls = []
    for group in groups_of(steps, returned, shapes):
        configuration = checked(group, chosen(group, measured))
        if configuration != TORCH:
            make = partial(made, group, configuration)
            try:
                calls.append(Floats(group=group, function=function((group.text, configuration), make)))
            except TuningError as error:  # torch computes everything
                names = ", ".join(node.name for node in group.nodes)
                warnings.warn(f"{names} stay with torch: {error}", stacklevel=2)
    return placed_last(steps, calls)


def placed_last(steps: Sequence[Step], calls: Sequence[Floats]) -> tuple[Step, ...]:
    """Every call where the last op of its group stood; what torch makes of its results comes behind it."""
    at = {call.node: call for call in calls}
    inside = {node for call in calls for node in call.group.nodes}
    missing = {node for call in calls for node in call.group.outputs}
    found: list[Step] = []
    waiting: list[Step] = []
    for step in steps:
        if isinstance(step, Compute) and step.node in inside:
            if step.node in at:
                call = at[step.node]
                found.append(call)
                missing.difference_update(call.group.outputs)
                released, waiting = waiting, []
                for held in released:
                    put(held, found, waiting, missing)
        else:
            put(step, found, waiting, missing)
    assert not waiting, "a step waits for what nothing computes"
    return tuple(found)


def put(step: Step, found: list[Step], waiting: list[Step], missing: set[Node]) -> None:
    """A step of torch that reads what is not there yet waits, and so does what reads its result."""
    missing.discard(step.node)
    if isinstance(step, Compute) and missing.intersection(step.node.all_input_nodes):
        waiting.append(step)
        missing.add(step.node)
    else:
        found.append(step)


def computed(steps: Sequence[Step]) -> dict[str, str]:
    """Op -> what computes it, of all ops in groups."""
    return {node.name: KERNEL for step in steps if isinstance(step, Floats) for node in step.group.nodes}
