"""Who computes a group: the row that measured best, else a rule: TVM where it saves something.

fused    two ops or more that touch memory: torch reads and writes what is between them, and calls each
small    one contraction of few products: torch's library takes longer to begin than these take
torch    all else: one op is one pass over memory for both, and large contractions are for libraries
"""

import warnings
from collections.abc import Mapping
from typing import Any

from qcompiler.backends.tvm.build import REFUSALS, refusal
from qcompiler.backends.tvm.floatpath.build import function, stages
from qcompiler.backends.tvm.floatpath.group import LONE, Group, work
from qcompiler.backends.tvm.floatpath.ops import CONTRACTIONS, MOVEMENT
from qcompiler.backends.tvm.floatpath.schedule import scheduled
from qcompiler.backends.tvm.floatpath.traces import applied
from qcompiler.errors import TuningError

# Configurations: who computes, or a trace.
TORCH, FUSED = "torch", "tvm, rows"


def workload(group: Group) -> str:
    """As rows of the database name it."""
    return f"float: {group.text}"


def by_rule(group: Group) -> str:
    computing = [node for node in group.nodes if node.target not in MOVEMENT]
    contractions = [node for node in computing if node.target in CONTRACTIONS]
    if any(work(node, group.shapes) >= LONE for node in contractions):
        return TORCH
    return FUSED if len(computing) > 1 or contractions else TORCH


def chosen(group: Group, measured: Mapping[str, str]) -> str:
    return measured.get(workload(group)) or by_rule(group)


def made(group: Group, configuration: str, symbol: str) -> Any:
    """The function of a group; raises TuningError where TVM cannot schedule it, or for a trace not of it."""
    if configuration != FUSED:
        return applied(unscheduled(group, symbol), configuration)
    arguments, names = stages(group)
    try:
        return scheduled(function(arguments, symbol), names)
    except REFUSALS as error:
        raise TuningError("TVM has no schedule for these ops together", why=refusal(error)) from error


def unscheduled(group: Group, symbol: str) -> Any:
    """What traces are of: sums as they are written, which schedules divide into lanes themselves."""
    arguments, _ = stages(group, lanes=1)
    return function(arguments, symbol)


def checked(group: Group, configuration: str) -> str:
    """The configuration, or what the rule says where the row cannot be used, which is told."""
    if configuration in (TORCH, FUSED):
        return configuration
    try:
        made(group, configuration, "checked")
    except TuningError as error:
        warnings.warn(f"{error}; meanwhile it has the one that is chosen without measurement", stacklevel=2)
        return by_rule(group)
    return configuration
