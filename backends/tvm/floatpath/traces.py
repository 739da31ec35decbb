"""A schedule as data: the trace of its primitives, as JSON text.

schedule  --written-->  [["GetSBlock", [], ["s0", "main"], ["b0"]], ..]  --applied-->  schedule

A primitive changes the order in which a function computes and never what: TVM proves each before it is done.
The few that are taken at their word (intrinsics, hidden accesses, other types and layouts) are refused, so a
text can make a function slow and not wrong, and reading one executes nothing.
"""

import json
from typing import Any

from tvm import s_tir

from qcompiler.backends.tvm.build import refusal
from qcompiler.errors import TuningError

PROVEN = frozenset({
    "GetSBlock", "GetLoops", "GetChildBlocks", "GetProducers", "GetConsumers", "GetOutputBlocks",
    "SampleCategorical", "SamplePerfectTile", "SampleComputeLocation", "Fuse", "Split", "Reorder", "Merge",
    "AddUnitLoop", "Vectorize", "Unroll", "ComputeAt", "ReverseComputeAt", "ComputeInline",
    "ReverseComputeInline", "CacheRead", "CacheWrite", "DecomposeReduction", "RFactor", "EnterPostproc",
})  # fmt: skip
NOTES = frozenset({  # annotations that only those who draw schedules look at
    "meta_schedule.unroll_explicit", "meta_schedule.unroll_implicit", "meta_schedule.vectorize",
    "meta_schedule.parallel", "meta_schedule.random_compute_producer", "meta_schedule.tiling_structure",
    "pragma_auto_unroll_max_step", "pragma_unroll_explicit",
})  # fmt: skip


def written(schedule: Any) -> str:
    return json.dumps(plain(schedule.trace.as_json()), separators=(",", ":"))


def plain(value: Any) -> Any:
    """What TVM holds as what JSON has."""
    if isinstance(value, str | bool | int | float | None):
        return str(value) if isinstance(value, str) else value
    return value.value if hasattr(value, "value") else [plain(part) for part in value]


def applied(function: Any, text: str) -> Any:
    """A function under a schedule; raises TuningError where the text is none, or none of this function."""
    try:
        steps, decisions = json.loads(text)
        kinds = {step[0] for step in steps}
        notes = {step[2][0] for step in steps if step[0] in ("Annotate", "Unannotate")}
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise damaged(f"it is no trace: {type(error).__name__}") from error
    unproven = sorted((kinds - {"Annotate", "Unannotate"} - PROVEN) | (notes - NOTES))
    if unproven:
        raise damaged(f"it holds '{unproven[0]}', which is not proven to keep the numbers")
    schedule = s_tir.Schedule(function)
    try:
        s_tir.schedule.Trace.apply_json_to_schedule([steps, decisions], schedule)
    except Exception as error:  # the text comes from a file, and TVM trusts it: whatever it raises
        raise damaged(f"TVM refuses it: {refusal(error)}") from error
    return schedule.mod["main"].with_attr("global_symbol", str(function.attrs["global_symbol"]))


def damaged(why: str) -> TuningError:
    return TuningError(
        "the schedule of a float function cannot be used", why=why, fix="run `qcompiler tune` again"
    )
