"""Products of bfloat16 with weights of few bits, beside bfloat16: from one row to those of a prompt."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_contest import OPS, Cell, op
from benchmarks.gpu_products import SHAPES
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.gate import too_far
from qcompiler.backends.triton.tuning.products import SAMPLED, activations, weights

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
    layout = layouts().layout_named(scheme)
    return int(N * K * layout.bits // 8 + 2 * N * K // layout.group)


def layouts() -> Any:
    return import_module("qcompiler.backends.triton.layouts")


def weight(scheme: str, N: int, K: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes at random, all of them as likely, and scales with which outputs are about as large as inputs."""
    layout = layouts().layout_named(scheme)
    codes = torch.randint(256, (N, K // layout.per_byte), dtype=torch.uint8, device=device)
    spread = 2**layout.bits / 12**0.5  # of codes that are spread evenly
    scales = (0.5 + torch.rand(N, K // layout.group, device=device)) / (spread * K**0.5)
    return codes, scales.to(DTYPE)


def linear(x: Tensor, codes: Tensor, scales: Tensor, scheme: str) -> Tensor:
    y: Tensor = op(OP)(x, codes, scales, None, None, None, scheme, False, "none", DTYPE)
    return y


def exact(x: Tensor, codes: Tensor, scales: Tensor, scheme: str) -> Tensor:
    lay = layouts()
    kept = lay.restored(lay.Weight(codes=codes, scales=scales, zeros=None, layout=scheme))
    wanted: Tensor = x.double() @ kept.double().t()
    return wanted


def prepare(scheme: str, M: int, N: int, K: int, device: torch.device) -> Contenders:
    x = activations(M, K, DTYPE, device)
    codes, scales = weight(scheme, N, K, device)
    copies = copies_of(codes.nbytes + scales.nbytes, device)
    held = [(codes.clone(), scales.clone()) for _ in range(copies)]
    floats = [weights(N, K, DTYPE, device) for _ in range(copies_of(2 * N * K, device))]
    rows = torch.randperm(M, device=device)[:SAMPLED]
    wanted = exact(x[rows], codes, scales, scheme)

    def wrong(name: str, found: Tensor) -> str:
        return "" if name == FLOAT else too_far(found[rows], wanted)

    return Contenders(
        calls={
            OURS: lambda copy: linear(x, *held[copy], scheme),
            FLOAT: lambda copy: F.linear(x, floats[copy % len(floats)]),
        }, copies=copies, wrong=wrong,
    )  # fmt: skip
