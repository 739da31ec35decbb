"""Products of 8-bit codes: ours, a vendor's and bfloat16, with quantization and without."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import torch

from benchmarks.gpu_contest import OK, OPS, REFUSED, WRONG, Cell, reason
from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning.bench import Contenders
from qcompiler.backends.triton.tuning.compiling import verdict
from qcompiler.backends.triton.tuning.device import Device, device_like, device_of
from qcompiler.backends.triton.tuning.families import FLOAT, KINDS, family_of, mode_of, space, written
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.products import contenders
from qcompiler.backends.triton.tuning.ranking import ordered
from qcompiler.backends.triton.tuning.residual import Residual

Shape = tuple[int, int]
SHAPES: tuple[Shape, ...] = (
    (4096, 4096), (11008, 4096), (14336, 4096), (4096, 14336), (8192, 8192), (28672, 8192)
)  # fmt: skip
SMALL: tuple[Shape, ...] = ((128, 64), (64, 128))
BUCKETS = tuple(2**k for k in range(13, -1, -1))
SQUARES = (8192, 4096, 2048, 1024, 16384)
TRIALS = 3  # configurations of a problem, the default among them: the autotuner tries more
WARMED = 256  # rows, inputs and outputs with which a candidate is compiled where it will run

SCHEMES = (
    ("int8_linear", "int8"),
    ("fp8_linear", "e4m3 fast"),
    ("fp8_linear", "e4m3 promote128"),
    ("fp8_block_linear", "e4m3"),
)

Fit = Mapping[str, Configuration]
Fitted = Callable[[Problem], Fit]
"""The candidates of a problem, by name."""


def sizes(small: bool) -> list[tuple[int, int, int]]:
    """M, N and K; what the default for Hopper is decided by comes first."""
    if small:
        return [(64, N, K) for N, K in SMALL]
    first = [(8192, 8192, 8192), *((8192, N, K) for N, K in ((4096, 4096), (14336, 4096), (4096, 14336)))]
    grid = [(M, N, K) for M, (N, K) in product((2048, 8192, 1024, 256), SHAPES)]
    return [*dict.fromkeys([*first, *grid, *((size, size, size) for size in SQUARES)])]


def problems(small: bool) -> list[Problem]:
    return [
        Problem(op=op, scheme=scheme, M=M, N=N, K=K)
        for (M, N, K), (op, scheme) in product(sizes(small), SCHEMES)
    ]


def cells(small: bool, fitted: Fitted) -> Iterator[Cell]:
    for problem in problems(small):
        yield cell(problem, peers_of(problem, small), fitted)


def baselines(small: bool) -> Iterator[Cell]:
    """bfloat16 and vendors at all buckets of rows, which is what everything else has to beat."""
    for M, (N, K) in product((1, 32) if small else BUCKETS, SMALL if small else SHAPES):
        for op, scheme in SCHEMES[:2]:
            problem = Problem(op=op, scheme=scheme, M=M, N=N, K=K)
            peers = peers_of(problem, small)
            if op == "int8_linear" or len(peers) > 1:
                yield cell(problem, peers, None)


def peers_of(problem: Problem, small: bool) -> tuple[str, ...]:
    """int_mm takes more than 16 rows; scaled_mm is there on GPUs, and by rows adds up all at once."""
    peers = family_of(problem).peers
    is_slow = mode_of(problem) == "promote128"
    out = {"int_mm"} if problem.M <= 16 else {"scaled_mm"} if small or is_slow else set[str]()
    return tuple(peer for peer in peers if peer not in out)


def cell(problem: Problem, peers: tuple[str, ...], fitted: Fitted | None) -> Cell:
    M, N, K = problem.M, problem.N, problem.K
    family = family_of(problem)
    suffixes = ("", " + quantize") if fitted else ("",)
    names = (FLOAT, *(f"{peer}{suffix}" for peer, suffix in product(peers, suffixes) if peer != FLOAT))

    def prepare(device: torch.device) -> Contenders:
        configurations = fitted(problem) if fitted else {}
        return contenders(problem, configurations, peers, device, quantized=fitted is not None)

    return Cell(
        op=problem.op, scheme=problem.scheme, M=M, N=N, K=K, prepare=prepare, peers=names,
        needs=(f"{OPS}linear", f"{OPS}blocks"), operations=2.0 * M * N * K,
        bytes=lambda name: (2.0 if name == FLOAT else 1.0) * N * K,  # the others may stay in L2
        kind=lambda name: "bf16" if name == FLOAT else KINDS[family.kernel],
        kernel=family.kernel,
    )  # fmt: skip


# ---------------------------------------------------------------- candidates


def candidates(problem: Problem, device: Device) -> Fit:
    """The default and the most promising ones on paper, by name."""
    first = space(problem, device.capability)[:1]
    found = {written(one): one for one in (*first, *ordered(problem, device, Residual()))}
    return dict(islice(found.items(), TRIALS))


def default(problem: Problem) -> Fit:
    """What runs where nothing is compiled: the op's reference on a CPU, under the name of its first row."""
    return {written(one): one for one in space(problem, 90)[:1]}


def tabled(problem: Problem, device: torch.device) -> Configuration:
    """What runs where nothing was measured."""
    return space(problem, described(device).capability)[0]


Key = tuple[str, str, str]
"""Op, scheme and candidate: sizes are arguments of a kernel, and no part of it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of compiling a candidate and calling it once: status as in a figure."""

    status: str
    reason: str = ""


def tasks(small: bool, device: Device) -> dict[Key, Configuration]:
    """All candidates of all problems, each once."""
    return {
        (problem.op, problem.scheme, name): one
        for problem in problems(small)
        for name, one in candidates(problem, device).items()
    }


def compiled(
    asked: Mapping[Key, Configuration],
    device: Device,
    executor: Executor,
    cache: Path | None,
    patience: float,
) -> dict[Key, Outcome]:
    """What became of candidates, side by side, in as many seconds; those that took longer are not there."""
    started = {
        executor.submit(compiled_and_called, key, one, device.capability, cache): key
        for key, one in asked.items()
    }
    done, _ = wait(started, timeout=patience)
    executor.shutdown(wait=False, cancel_futures=True)
    return {started[one]: outcome(one) for one in done}


def outcome(of: Future[Outcome]) -> Outcome:
    """Its result, or what its process died of."""
    error = of.exception()
    return of.result() if error is None else Outcome(status=REFUSED, reason=reason(error))


def compiled_and_called(
    key: Key, configuration: Configuration, capability: int, cache: Path | None
) -> Outcome:
    """Judged by machine code, and called once, small, so that whoever calls it next finds it compiled."""
    op, scheme, name = key
    problem = Problem(op=op, scheme=scheme, M=WARMED, N=WARMED, K=WARMED)
    fault = verdict(problem, configuration, capability, cache).fault
    if fault or not torch.cuda.is_available():
        return Outcome(status=REFUSED if fault else OK, reason=fault)
    try:
        made = contenders(problem, {name: configuration}, (), torch.device("cuda"))
        wrong = made.wrong(name, made.calls[name](0))
    except Exception as error:  # a worker tells of what went wrong, and does not die of it
        return Outcome(status=REFUSED, reason=reason(error))
    return Outcome(status=WRONG if wrong else OK, reason=wrong)


def fitted_by(found: Mapping[Key, Outcome], device: Device) -> Fitted:
    """The candidates of a problem that are fit; those that nobody could compile in time are left out."""

    def fit(problem: Problem) -> Fit:
        fine = {key for key, outcome in found.items() if outcome.status == OK}
        every = candidates(problem, device)
        return {name: one for name, one in every.items() if (problem.op, problem.scheme, name) in fine}

    return fit


def described(device: torch.device) -> Device:
    """What CUDA says of a device; a CPU stands for a small one of compute capability 9.0."""
    return device_of(device) if device.type == "cuda" else device_like("CPU", 90, 1)
