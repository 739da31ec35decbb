"""One function for all kernel calls of a program, which Python starts once for a whole row of them.

    main(table, first, last, thread, threads):
        for call i = first .. last - 1:    kernel_i(table[a], table[b], .. [, turns of this thread])
                                           wait until every thread has come so far

Every thread runs it. A call that is not divided is thread 0's; threads wait for each other where a divided
call meets another, by counting: each writes how often it has come, and reads what the others wrote. A wait
takes 0.2 us (Zen 4, with a call of two turns), where a thread that sleeps takes far longer to wake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Call, GlobalVar

from qcompiler.backends.tvm.builder import Builder
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.plain import plain, pointer_to, workspace

MAIN = "main"
MEET = "meet"
MEETING, WORKSPACE, FIRST = 0, 1, 2  # places in the table: the threads' counters, their memory, all others
PATIENCE = 2000  # looks at another's counter before naps: it may be waiting for this processor
NAP = 20  # us; a processor that is only offered (sched_yield) is often not taken
APART = 16  # int32 from one thread's counter to the next: a cache line


@dataclass(frozen=True, kw_only=True)
class Started:
    """One call: of a function, on what lies in these places of the table; `turns` if threads divide it."""

    function: str
    places: tuple[int, ...]
    turns: int | None = None


def counters(threads: int) -> int:
    """Numbers where threads meet: one of each, a cache line apart, and last whether waiting was given up."""
    return APART * threads + 1


def driven(
    functions: Mapping[str, Any], calls: Sequence[Started], size: int, threads: int, isa: Isa
) -> dict[Any, Any]:
    """The functions as C has them, and `main` for a table of `size` addresses."""
    named = {name: GlobalVar(name) for name in (*functions, MEET, MAIN)}
    made = {**functions, MEET: meet(size, threads, isa)}
    found = {named[name]: plain(each) for name, each in made.items()}
    return {**found, named[MAIN]: main(calls, functions, named, size, isa)}


def main(
    calls: Sequence[Started], functions: Mapping[str, Any], named: Mapping[str, Any], size: int, isa: Isa
) -> Any:
    k = Builder(MAIN)
    table = k.argument("table", "int64", size)
    first, last, thread, present = (k.number(name) for name in ("first", "last", "thread", "threads"))
    own = table[WORKSPACE] + tirx.Cast("int64", thread) * largest(functions)
    for i, call in enumerate(calls):
        given = [pointer_to(table[place]) for place in call.places]
        follows = calls[i + 1].turns if i + 1 < len(calls) else None
        if call.turns is not None:
            given += [tirx.floordiv(call.turns * each, present) for each in (thread, thread + 1)]
        if workspace(functions[call.function]):
            given.append(own)
        mine = thread.equal(0) if call.turns is None else tirx.const(True, "bool")
        with k.only_if(tirx.all(first <= i, i < last)):
            with k.only_if(mine):
                k.emit(called(named[call.function], *given))
            # LLVM takes buffers of two functions for different memory, and may inline small ones. Processors
            # know better, and with a full fence would wait: 6 % of a decoder's step.
            k.emit(tirx.Evaluate(isa.barrier()))
            if call.turns is not None or follows is not None:
                k.emit(called(named[MEET], table.data, thread, present))
    return k.function()


def largest(functions: Mapping[str, Any]) -> int:
    """Bytes that a thread needs to work in."""
    return max(map(workspace, functions.values()), default=0)


def meet(size: int, threads: int, isa: Isa) -> Any:
    """Come, and wait until none of the others is where it was before.

    The counters are found in the table: LLVM takes what an argument points to for this function's alone, and
    would read once what others write.
    """
    k = Builder(MEET)
    table = k.argument("table", "int64", size)
    meeting = k.view(pointer_to(table[MEETING], "int32"), "int32", counters(threads))
    thread, present = k.number("thread"), k.number("threads")
    before, looks = k.keep(meeting[thread * APART], "int32", 1), k.register("int32", 1)
    k.emit(tirx.Evaluate(isa.fence()))
    k.store(meeting, thread * APART, before + 1)
    k.emit(tirx.Evaluate(isa.fence()))
    k.store(looks, 0, tirx.const(0, "int32"))
    with k.loop(present) as other:
        waiting = meeting[other * APART].equal(before)
        with k.loop_while(tirx.all(waiting, meeting[threads * APART].equal(0))):
            k.emit(tirx.Evaluate(isa.pause()))
            k.store(looks, 0, looks[0] + 1)
            with k.only_if(looks[0] > PATIENCE):
                k.emit(tirx.Evaluate(tirx.call_extern("int32", "usleep", NAP)))
    k.emit(tirx.Evaluate(isa.fence()))
    return k.function()


def called(function: Any, *given: Any) -> Any:
    return tirx.Evaluate(Call(function, list(given)))
