"""Forward, dgrad and wgrad of one linear layer in 8 bits, with all codes made on the way, beside bfloat16."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_contest import OPS, Cell, op
from qcompiler.backends.triton.tuning.bench import Contenders
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.gate import lost, too_far
from qcompiler.backends.triton.tuning.products import SAMPLED, activations, weights

OP, NEEDS = "trained_linear", f"{OPS}training"
WEIGHT_TOO = " + weight"  # behind a name: codes of the weight are made as well, as once in a step
SHAPES = (
    *product((8192, 32768, 2048), ((4096, 4096), (14336, 4096))),
    *product((8192, 16384), ((768, 3072), (1024, 4096))),
)
DTYPE = torch.bfloat16

Step = tuple[Tensor, Tensor, Tensor]
"""y, dx, dw"""


def cells(small: bool) -> Iterator[Cell]:
    for (M, (N, K)), format in product(((64, (48, 32)),) if small else SHAPES, ("int8", "e4m3")):
        yield cell(format, M, N, K)


def cell(format: str, M: int, N: int, K: int) -> Cell:
    kind = "fp8" if format == "e4m3" else "int8"
    return Cell(
        op=OP, scheme=format, M=M, N=N, K=K, prepare=partial(prepare, format, M, N, K), needs=(NEEDS,),
        operations=6.0 * M * N * K, kind=lambda name: "bf16" if name == FLOAT else kind,
        kernel="fp8_matmul" if format == "e4m3" else "int8_matmul",
    )  # fmt: skip


def prepare(format: str, M: int, N: int, K: int, device: torch.device) -> Contenders:
    low_bit_linear: Any = import_module(NEEDS).low_bit_linear
    both = op("quantize_both")
    x = activations(M, K, DTYPE, device).requires_grad_()
    w = weights(N, K, DTYPE, device).requires_grad_()
    dy = torch.randn(M, N, device=device).to(DTYPE)
    ready = both(w.detach(), format)
    latest: dict[str, Step] = {}

    def step(name: str, forward: Callable[[], Tensor]) -> Tensor:
        y = forward()
        dx, dw = torch.autograd.grad(y, (x, w), dy)
        latest[name] = y.detach(), dx, dw
        return dw

    forwards: dict[str, Callable[[], Tensor]] = {
        format: lambda: low_bit_linear(x, w, format=format, weight=ready),
        f"{format}{WEIGHT_TOO}": lambda: low_bit_linear(x, w, format=format),
        FLOAT: lambda: F.linear(x, w),
    }
    sampled = [torch.randperm(size, device=device)[:SAMPLED] for size in (M, M, N)]
    wanted = exact(both(x.detach(), format), ready, both(dy, format), (M, N, K), sampled)

    def wrong(name: str, found: Tensor) -> str:
        """FP8 sums forward as tensor cores keep them, and backward in float32 every 128."""
        if name == FLOAT:
            return ""
        modes = ("fast", "promote128", "promote128") if format == "e4m3" else ("", "", "")
        before = map(lost, modes, (K, N, M))
        parts = zip(("y", "dx", "dw"), latest[name], sampled, wanted, before, strict=True)
        why = ((what, too_far(one[rows], right, most)) for what, one, rows, right, most in parts)
        return "; ".join(f"{what}: {text}" for what, text in why if text)

    calls = {name: lambda copy, name=name: step(name, forwards[name]) for name in forwards}
    return Contenders(calls=calls, copies=1, wrong=wrong)


def exact(
    x: Any, w: Any, dy: Any, sizes: tuple[int, int, int], rows: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of Y = X W^T, dX = dY W and dW = dY^T X, of what codes stand for, in float64."""
    M, N, K = sizes
    operands = ((x[:2], w[:2], K), (dy[:2], w[2:], N), (dy[2:], x[2:], M))
    y, dx, dw = (
        restored(left, k)[at] @ restored(right, k).t()
        for (left, right, k), at in zip(operands, rows, strict=True)
    )
    return y, dx, dw


def restored(rows: tuple[Tensor, Tensor], columns: int) -> Tensor:
    """Codes times scales; the zeros behind the last column are left out."""
    codes, scales = rows
    return codes[:, :columns].double() * scales.double()[:, None]
