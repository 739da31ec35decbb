"""What the linears of a model ask of a device in calls of so many rows, as problems.

    a linear              its product, and that whose result goes on as codes
    what it reads         the passes that make codes of it, as `engine.readings` names them

Which of these run depends on what computes the others, so all of them are measured.
"""

from collections.abc import Iterable, Mapping

from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.readings import FLOATS, ROWS, SCALE, Reading
from qcompiler.backends.triton.layouts import LAYOUTS
from qcompiler.backends.triton.ops.quantize import padded
from qcompiler.backends.triton.tuning.problem import Problem, going_on
from qcompiler.numerics.row_codes import CODES

OPS: Mapping[str, tuple[str, str]] = {
    "int8": ("int8_linear", "int8"),
    "e4m3": ("fp8_linear", "e4m3 fast"),
    "e4m3b128": ("fp8_block_linear", "e4m3"),
    **{name: ("weight_only_linear", name) for name in LAYOUTS},
}
"""By format of codes, or layout of a weight of few bits: the op that multiplies it, and its scheme."""

MAXIMA = "maxima"  # of rows, which the product before brings
QUANTIZERS: Mapping[tuple[str, str], tuple[str, str]] = {
    **{(ROWS, name): ("quantize_rows", name) for name in CODES},
    **{(MAXIMA, name): ("quantize_by_amax", name) for name in CODES},
    **{(SCALE, name): ("quantize_by_scale", name) for name in CODES},
    (ROWS, "e4m3b128"): ("quantize_blocks", "e4m3"),
}
"""By what is known of rows and a format of codes: the op that makes them of floats, and its scheme."""


def problem_of(linear: Linear, M: int, *, codes: bool = False) -> Problem:
    """A linear's product of M rows; codes: whether its result goes on as such."""
    op, scheme = OPS[linear.format]
    scheme = " ".join(filter(None, (scheme, "zeros" * linear.zeros, "gated" * linear.gated)))
    K = linear.K if linear.format in LAYOUTS else padded(linear.K)
    found = Problem(op=op, scheme=scheme, M=M, N=linear.N, K=K, out=linear.out, heavy=linear.heavy)
    return going_on(found, codes=codes)


def quantizer_of(reading: Reading, M: int, *, maxima: bool = False) -> Problem:
    """The pass that makes codes of what is read; maxima: whether those of rows are known."""
    first = reading.readers[0]
    op, scheme = QUANTIZERS[MAXIMA if maxima else reading.by, first.format]
    return Problem(op=op, scheme=scheme, M=M, N=0, K=first.K, out=reading.x)


def quantizers_of(reading: Reading, M: int) -> list[Problem]:
    """The passes that may make codes of it: none of what is read as floats."""
    if reading.by == FLOATS:
        return []
    is_spared = reading.by == ROWS and reading.maker is not None
    return [quantizer_of(reading, M, maxima=maxima) for maxima in (False, True)[: 1 + is_spared]]


def may_hand_on(linear: Linear, readings: Iterable[Reading]) -> bool:
    """Whether the result of a linear may go on as codes."""
    return any(reading.by == SCALE and reading.maker == linear for reading in readings)


def problems_of(linear: Linear, readings: Iterable[Reading], M: int) -> list[Problem]:
    """All that may run where a linear of a model is called, its product first."""
    every = [*readings]
    found = [problem_of(linear, M)]
    if may_hand_on(linear, every):
        found.append(problem_of(linear, M, codes=True))
    makers = (quantizers_of(reading, M) for reading in every if linear in reading.readers)
    return [*dict.fromkeys([*found, *(problem for made in makers for problem in made)])]


def linears_in(readings: Iterable[Reading]) -> list[Linear]:
    """Each once."""
    return [*dict.fromkeys(linear for reading in readings for linear in reading.readers)]
