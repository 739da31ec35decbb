"""What is asked of a device: an op of certain sizes, as text in the rows of the database."""

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

TEXT = re.compile(
    r"(?P<op>[^,]+), (?P<scheme>[^,]+), M (?P<M>\d+)(, N (?P<N>\d+))?, K (?P<K>\d+), (?P<out>\w+)"
    r"(?P<heavy>, heavy)?"
)
LARGEST = 8192  # rows of a bucket; beyond it times grow in proportion


@dataclass(frozen=True, kw_only=True)
class Problem:
    """y [M, N] = act(x [M, K] W^T + bias) + residual, or rows [M, K] where N is 0.

    op: the family that answers. scheme: bits, scales and layout of what is stored in few bits. out: the type
    of the result. heavy: whether more happens to the result than scales and a bias.
    """

    op: str
    scheme: str
    M: int
    N: int
    K: int
    out: str = "bf16"
    heavy: bool = False

    @property
    def text(self) -> str:
        """The workload of a row."""
        sizes = ", ".join(
            f"{name} {size}" for name, size in (("M", self.M), ("N", self.N), ("K", self.K)) if size
        )
        return f"{self.op}, {self.scheme}, {sizes}, {self.out}{', heavy' if self.heavy else ''}"

    @property
    def bucketed(self) -> "Problem":
        return replace(self, M=bucket(self.M))


def parsed(text: str) -> Problem | None:
    """The problem of a row; None where it is of something else."""
    found = TEXT.fullmatch(text)
    if found is None:
        return None
    return Problem(
        op=found["op"], scheme=found["scheme"], M=int(found["M"]), N=int(found["N"] or 0), K=int(found["K"]),
        out=found["out"], heavy=bool(found["heavy"]),
    )  # fmt: skip


def command(problem: Problem, database: Path | None = None) -> str:
    """What a user types to have a problem measured, for a database that was named."""
    words = ["--database", str(database)] if database is not None else []
    return shlex.join(["qcompiler", "tune", "--target", "cuda", *words, "--problem", problem.text])


def going_on(problem: Problem, *, codes: bool = False, maxima: bool = False) -> Problem:
    """What a product is measured as whose result goes on as codes, or with the maxima of its rows beside it.

    Either is much for an epilogue. Nobody measures products whose results are codes, and they run as those do
    that write bfloat16: what is read and summed is the same.
    """
    heavy = problem.heavy or codes or maxima
    return replace(problem, out="bf16" if codes else problem.out, heavy=heavy)


def bucket(rows: int) -> int:
    """The power of two that stands for a number of rows: the next, at most 8192."""
    return min(1 << max(rows - 1, 0).bit_length(), LARGEST)
