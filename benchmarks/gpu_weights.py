"""Products of bfloat16 with weights of few bits, beside bfloat16: from one row to those of a prompt."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.gpu_contest import OPS, Cell, op
from benchmarks.gpu_products import SHAPES, tabled
from qcompiler.backends.triton.layouts import Weight, layout_named
from qcompiler.backends.triton.tuning.bench import Contenders
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.weight_only import contenders, random_weight

OP = "weight_only_linear"
ROWS = (1, 16, 128, 64, 256, 512, 32, 8, 4, 2)
SCHEMES = ("w4h_g128", "w4h_g32", "w8_g128", "w2h_g64")
DTYPE = torch.bfloat16
OURS = "triton"
NEEDS = f"{OPS}weight_only"


def cells(small: bool) -> Iterator[Cell]:
    shapes = ((64, 128), (128, 256)) if small else SHAPES
    for M, (N, K) in product((1, 16) if small else ROWS, shapes):
        yield cell(SCHEMES[0], M, N, K)
    for scheme, M in product(SCHEMES[1:], (1,) if small else (1, 16)):
        yield cell(scheme, M, *shapes[1])


def cell(scheme: str, M: int, N: int, K: int) -> Cell:
    return Cell(
        op=OP, scheme=scheme, M=M, N=N, K=K, prepare=partial(prepare, scheme, M, N, K), needs=(NEEDS,),
        operations=2.0 * M * N * K, kernel="weight_only_gemv" if M == 1 else "weight_only_gemm",
        bytes=lambda name: 2.0 * N * K if name == FLOAT else float(stored(scheme, N, K)),
    )  # fmt: skip


def stored(scheme: str, N: int, K: int) -> int:
    """Bytes of codes and scales."""
    layout = layout_named(scheme)
    return int(N * K * layout.bits // 8 + 2 * N * K // layout.group)


def weight(scheme: str, N: int, K: int, device: torch.device) -> Weight:
    return random_weight(N, K, layout_named(scheme), False, DTYPE, device)


def linear(x: Tensor, w: Weight) -> Tensor:
    y: Tensor = op(OP)(x, w.codes, w.scales, None, None, None, w.layout, False, "none", DTYPE)
    return y


def prepare(scheme: str, M: int, N: int, K: int, device: torch.device) -> Contenders:
    """As the tuner has them: what the tables say, beside floats."""
    problem = Problem(op=OP, scheme=scheme, M=M, N=N, K=K)
    return contenders(problem, {OURS: tabled(problem, device)}, (FLOAT,), device)
