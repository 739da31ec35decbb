"""Kernels that memory bounds, beside a copy of the same input: codes, norms, transforms, saved activations.

of_copy = (bytes / time) / (bytes of the copy / its time)      of the same round, the median of rounds

bytes: what each number costs at least, so a kernel that reads it twice is charged for both reads only where
no other way is known.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_contest import COPY, OPS, Cell
from benchmarks.gpu_products import tabled
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.products import activations
from qcompiler.backends.triton.tuning.rows import EPS, contenders, differs
from qcompiler.ir.storage import recall, store
from qcompiler.numerics.hadamard import hadamard
from qcompiler.numerics.philox import noise_key

COLUMNS = 4096
SIZES = (2**26, 2**24, 2**28)  # numbers
BLOCK = 128  # of the Hadamard transform
OURS, APART = "triton", "apart"
DTYPE = torch.bfloat16

Result = Sequence[Tensor]
Call = Callable[[int], Result]
"""On the i-th copy of x."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kernel: bytes of each number that it has to read and write, and who else computes the same.

    make: of a problem's sizes on a device, ours as the tuner or a training has it. apart: of a scheme and
    copies of x, torch's kernels with ours for the codes; None where nobody would do it so.
    """

    op: str
    scheme: str
    needs: str
    kernel: str
    bytes: float
    make: Callable[[Problem, torch.device], Contenders]
    apart: Callable[[str, list[Tensor]], Call] | None = None


def cells(small: bool) -> Iterator[Cell]:
    for count in (2**12,) if small else SIZES:
        for kind in KINDS:
            yield cell(kind, count // (64 if small else COLUMNS), 64 if small else COLUMNS)


def cell(kind: Kind, M: int, K: int) -> Cell:
    return Cell(
        op=kind.op, scheme=scheme_of(kind, K), M=M, K=K, prepare=partial(prepare, kind, M, K),
        needs=(kind.needs,), peers=(COPY, APART) if kind.apart else (COPY,), kernel=kind.kernel,
        bytes=lambda name: {COPY: 4.0, OURS: kind.bytes}.get(name, 0.0) * M * K,
    )  # fmt: skip


def scheme_of(kind: Kind, K: int) -> str:
    return kind.scheme.format(block=min(BLOCK, K))


def prepare(kind: Kind, M: int, K: int, device: torch.device) -> Contenders:
    """Results stay where they are until the copy's turn comes again: nothing is written to L2 alone."""
    scheme, x = scheme_of(kind, K), copies(M, K, device)
    made = kind.make(Problem(op=kind.op, scheme=scheme, M=M, N=0, K=K), device)
    others: dict[str, Call] = {COPY: lambda copy: [x[copy].clone()]}
    if kind.apart is not None:
        others[APART] = kind.apart(scheme, x)
    kept: dict[tuple[str, int], Result] = {}

    def keeping(name: str, copy: int) -> Tensor:
        kept[name, copy] = others[name](copy)
        return kept[name, copy][0]

    def wrong(name: str, found: Tensor) -> str:
        return made.wrong(name, found) if name == OURS else ""

    calls: dict[str, Callable[[int], Tensor]] = {name: partial(keeping, name) for name in others}
    calls[OURS] = made.calls[OURS]
    return Contenders(calls=calls, copies=len(x), wrong=wrong)


def copies(M: int, K: int, device: torch.device) -> list[Tensor]:
    return [activations(M, K, DTYPE, device) for _ in range(copies_of(DTYPE.itemsize * M * K, device))]


# ---------------------------------------------------------------- the kernels


def tuned(problem: Problem, device: torch.device) -> Contenders:
    """As the tuner has them: what the tables say."""
    return contenders(problem, {OURS: tabled(problem, device)}, (), device)


def both_apart(scheme: str, x: list[Tensor]) -> Call:
    return lambda copy: (*quantize_rows(x[copy], scheme), *quantize_rows(x[copy].t().contiguous(), scheme))


def norm_apart(scheme: str, x: list[Tensor]) -> Call:
    """RMS norm of x + r; the stream goes on in x's type."""
    K, format = x[0].shape[1], scheme.split(maxsplit=1)[0]
    r, weight = [torch.randn_like(one) for one in x], torch.rand(K, device=x[0].device).to(DTYPE)

    def call(copy: int) -> Result:
        h = x[copy] + r[copy]
        return (*quantize_rows(F.rms_norm(h, (K,), weight, EPS), format), h)

    return call


def hadamard_apart(scheme: str, x: list[Tensor]) -> Call:
    format, block = scheme.split(maxsplit=1)[0], int(scheme.split()[1])
    matrix = hadamard(block).to(x[0].device, DTYPE)

    def call(copy: int) -> Result:
        made: Result = quantize_rows((x[copy].view(-1, block) @ matrix).view(x[copy].shape), format)
        return made

    return call


def first(x: Tensor) -> Tensor:
    """Whole groups of the first rows: draws depend on an element's place."""
    return x[: max(1, 2**16 // x.shape[1])].cpu()


def installed(device: torch.device) -> None:
    """Kernels for what a training step stores are not there by themselves."""
    if device.type == "cuda":
        from importlib import import_module

        import_module(f"{OPS}install").install(device)


def packs(problem: Problem, device: torch.device) -> Contenders:
    installed(device)
    x, bits, key = copies(problem.M, problem.K, device), bits_of(problem), noise_key(1, 2, 3)
    its, wanted = key.to(device), store(first(x[0]), key, 0, bits)
    made: dict[int, Result] = {}

    def call(copy: int) -> Tensor:
        made[copy] = store(x[copy], its, 0, bits)
        return made[copy][0]

    def wrong(name: str, found: Tensor) -> str:
        return differs([one[: len(other)] for one, other in zip(made[0], wanted, strict=True)], wanted)

    return Contenders(calls={OURS: call}, copies=len(x), wrong=wrong)


def unpacks(problem: Problem, device: torch.device) -> Contenders:
    installed(device)
    x, bits, key = copies(problem.M, problem.K, device), bits_of(problem), noise_key(1, 2, 3)
    held = [store(one, key.to(device), 0, bits) for one in x]
    few = first(x[0])
    wanted = unpacked(store(few, key, 0, bits), few, bits)
    made: dict[int, Tensor] = {}

    def call(copy: int) -> Tensor:
        made[copy] = unpacked(held[copy], x[copy], bits)
        return made[copy]

    return Contenders(
        calls={OURS: call}, copies=len(x), wrong=lambda name, found: differs([found[: len(few)]], [wanted])
    )


def bits_of(problem: Problem) -> int:
    return int(problem.scheme.removesuffix(" bits"))


def unpacked(stored: Result, like: Tensor, bits: int) -> Tensor:
    y: Tensor = recall(*stored, bits, [*like.shape], [*like.stride()], like.dtype)
    return y


def kinds() -> Iterator[Kind]:
    group = 4 / 256  # bytes of a group's minimum and step, for each number
    for scheme in ("int8", "e4m3"):
        yield Kind(
            op="quantize_rows", scheme=scheme, needs=f"{OPS}quantize", kernel="quantize_rows", bytes=3.0,
            make=tuned,
        )  # fmt: skip
        yield Kind(
            op="quantize_by_scale", scheme=scheme, needs=f"{OPS}known", kernel="quantize_known", bytes=3.0,
            make=tuned,
        )  # fmt: skip
        yield Kind(
            op="norm_quantize", scheme=f"{scheme} rms residual", needs=f"{OPS}norm", kernel="norm_quantize",
            bytes=7.0, make=tuned, apart=norm_apart,
        )  # fmt: skip
        yield Kind(  # a column does not fit on a chip, so everything is read twice
            op="quantize_both", scheme=scheme, needs=f"{OPS}quantize_both", kernel="quantize_both", bytes=6.0,
            make=tuned, apart=both_apart,
        )  # fmt: skip
        yield Kind(
            op="hadamard_quantize", scheme=f"{scheme} {{block}}", needs=f"{OPS}hadamard",
            kernel="hadamard_quantize", bytes=3.0, make=tuned, apart=hadamard_apart,
        )  # fmt: skip
    for bits in (4, 2):
        for name, make in (("store", packs), ("recall", unpacks)):
            yield Kind(
                op=name, scheme=f"{bits} bits", needs=f"{OPS}install", kernel=name,
                bytes=2 + bits / 8 + group, make=make,
            )  # fmt: skip


KINDS: tuple[Kind, ...] = (*kinds(),)
