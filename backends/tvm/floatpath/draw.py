"""Schedules of a float function that TVM's MetaSchedule draws from its space, as traces.

    space     inlining, sums in lanes, tiles, places of computation, vectors and unrolling
    draw i    a design of the space, its open choices taken by the seed i

Draws are independent and the same in every run; what is best is measured, so no cost model is asked.
"""

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from qcompiler.backends.tvm.floatpath.traces import written

INTRINSICS = "tvm.s_tir.tensor_intrin"
ATTEMPTS = 4  # draws per trace wanted: some are not valid, some equal


def drawn(function: Any, target: Any, count: int) -> list[str]:
    """At most `count` different traces of an unscheduled function."""
    import tvm
    from tvm import s_tir

    module = tvm.IRModule({"main": function})
    context, designs = space_of(module, target)
    found: dict[str, None] = {}
    for seed in range(ATTEMPTS * count):
        if len(found) == count or not designs:
            break
        schedule = s_tir.Schedule(module, seed=seed + 1)  # 0 is none
        design = designs[seed % len(designs)]
        try:
            s_tir.schedule.Trace(design.trace.insts, {}).apply_to_schedule(schedule, remove_postproc=True)
            schedule.enter_postproc()
            valid = all(each.apply(schedule) for each in context.space_generator.postprocs)
        except Exception:  # TVM's refusals have no class of their own: this choice is not possible
            valid = False
        if valid:
            found.setdefault(written(schedule))
    return list(found)


def space_of(module: Any, target: Any) -> tuple[Any, list[Any]]:
    """The designs of the widest space that there is: a rule may fail on what it takes, and ends them all."""
    for tiles, writes in ((True, True), (True, False), (False, False)):
        context = context_of(module, target, tiles=tiles, writes=writes)
        with contextlib.suppress(Exception):  # TVM's refusals have no class of their own
            return context, list(context.generate_design_space())
    return None, []


def context_of(module: Any, target: Any, *, tiles: bool, writes: bool) -> Any:
    """tiles: loops are split, for what is read again; writes: and what is stored is written by tile."""
    from tvm.s_tir import meta_schedule as ms

    rule, after = ms.schedule_rule, ms.postproc
    rules = [
        rule.AutoInline(
            into_producer=False, into_consumer=True, inline_const_tensor=True, disallow_if_then_else=True,
            require_injective=True, require_ordered=True, disallow_op=["tirx.exp"],
        ),
        rule.AddRFactor(max_jobs_per_core=-1, max_innermost_factor=64),
        rule.MultiLevelTiling(
            structure="SSRSRS", tile_binds=None, max_innermost_factor=64, vector_load_lens=None,
            reuse_read=None,
            reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global") if writes else None,
        ),
        rule.ParallelizeVectorizeUnroll(
            max_jobs_per_core=-1, max_vectorize_extent=64, unroll_max_steps=[0, 16, 64, 512],
            unroll_explicit=True,
        ),
        rule.RandomComputeLocation(),
    ]  # fmt: skip
    rules = [each for each in rules if tiles or not isinstance(each, rule.MultiLevelTiling)]
    postprocs = [
        after.DisallowDynamicLoop(), after.RewriteParallelVectorizeUnroll(), after.RewriteReductionBlock(),
    ]  # fmt: skip
    space = ms.space_generator.PostOrderApply(sch_rules=rules, postprocs=postprocs, mutator_probs={})
    with without_intrinsics():
        return ms.TuneContext(
            mod=module, target=target, space_generator=space, task_name="float", num_threads=1, rand_state=1
        )


@contextlib.contextmanager
def without_intrinsics() -> Iterator[None]:
    """A context imports every intrinsic that TVM knows, which takes 30 s of CPU; none is drawn here."""
    if INTRINSICS in sys.modules:
        yield
        return
    sys.modules[INTRINSICS] = types.ModuleType(INTRINSICS)
    try:
        yield
    finally:
        del sys.modules[INTRINSICS]
