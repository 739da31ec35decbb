"""What rows say of every linear, as decisions over the number of its rows.

    rows of (format, N, K) at M = 1, 16, 64, ...  -->  float, from 17 int8_linear, from 2049 int_mm

Between two numbers of rows that were measured, the larger one decides.
"""

from collections.abc import Iterable, Mapping

from qcompiler.backends.triton.decisions import Decisions, Linear, Table
from qcompiler.backends.triton.layouts import LAYOUTS
from qcompiler.backends.triton.ops.quantize import padded
from qcompiler.backends.triton.tuning.borders import borders
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.problem import LARGEST, Problem, parsed
from qcompiler.backends.triton.tuning.profit import Bucket, weighed
from qcompiler.backends.triton.tuning.schedules import Schedules
from qcompiler.numerics.row_codes import CODES

OPS: Mapping[str, tuple[str, str]] = {
    "int8": ("int8_linear", "int8"),
    "e4m3": ("fp8_linear", "e4m3 fast"),
    "e4m3b128": ("fp8_block_linear", "e4m3"),
    **{name: ("weight_only_linear", name) for name in LAYOUTS},
}
"""By format of codes, or layout of a weight of few bits: the op that multiplies it, and its scheme."""

QUANTIZERS: Mapping[str, tuple[str, str]] = {
    **{name: ("quantize_rows", name) for name in CODES},
    "e4m3b128": ("quantize_blocks", "e4m3"),
}
"""By format of codes, the op that makes them of floats, and its scheme."""


def problem_of(linear: Linear, M: int) -> Problem:
    """A linear's product of M rows."""
    op, scheme = OPS[linear.format]
    scheme = " ".join(filter(None, (scheme, "zeros" * linear.zeros, "gated" * linear.gated)))
    K = padded(linear.K) if linear.format in QUANTIZERS else linear.K
    return Problem(op=op, scheme=scheme, M=M, N=linear.N, K=K, out=linear.out, heavy=linear.heavy)


def quantizer_of(linear: Linear, M: int) -> Problem | None:
    """What makes the codes of its input; None where it reads floats."""
    if linear.format not in QUANTIZERS:
        return None
    op, scheme = QUANTIZERS[linear.format]
    return Problem(op=op, scheme=scheme, M=M, N=0, K=linear.K, out=linear.out)


def table(linears: Iterable[Linear], schedules: Schedules) -> Table:
    """Decisions of codes that have rows of these versions; others have none.

    Weights of few bits are there to save memory, which the float product would undo: nothing decides on them.
    """
    found = {linear: decisions(linear, schedules) for linear in linears if linear.format in QUANTIZERS}
    return {linear: made for linear, made in found.items() if made is not None}


def decisions(linear: Linear, schedules: Schedules) -> Decisions | None:
    names = {M: name for M in measured(linear, schedules) if (name := fastest(linear, M, schedules))}
    if not names:
        return None
    starts, chosen = borders(names.__getitem__, sorted(names), grain=LARGEST)
    return Decisions(borders=tuple(starts), names=tuple(chosen), measured=True)


def measured(linear: Linear, schedules: Schedules) -> list[int]:
    """The numbers of rows for which a linear has rows in the database."""
    problems = filter(None, map(parsed, schedules.rows))
    return sorted({problem.M for problem in problems if problem == problem_of(linear, problem.M)})


def fastest(linear: Linear, M: int, schedules: Schedules) -> str:
    """The candidate's name; "" where only rows of another version tell.

    Codes have to be worth making, by one linear alone: how many read them is not known here.
    """
    problem, quantizer = problem_of(linear, M), quantizer_of(linear, M)
    choice = schedules.choice(problem)
    if choice is None or choice.is_prior:
        return ""
    making = schedules.choice(quantizer, peers=False) if quantizer else None
    bucket = Bucket(
        M=M, weight=1.0, few_bits=choice.seconds, in_float=choice.seconds * choice.ratio,
        quantize=making.seconds if making else 0.0,
    )  # fmt: skip
    if quantizer and not weighed(str(linear), [bucket], is_measured=True).is_accepted:
        return FLOAT
    if choice.configuration is not None:
        return problem.op
    return choice.contender
