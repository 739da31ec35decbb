"""What a device can do at most: memory copied and read, products by a vendor, a launch in a graph.

Shares of a ceiling are taken to what was measured here. More than the ceiling is an error of the benchmark.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_contest import COPY, OK, Cell, Figure, always_right
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.products import activations, weights

STAGE = "ceilings"
READ, LAUNCH = "read", "launch"
SHEET = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}
"""bfloat16 operations per second by the data sheet, dense; those of 8 bits are twice as many."""
LAUNCHES = 256  # in one graph
NOISE = 1.03  # times: what differs by less is equal


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Per second: bytes copied or read, whichever is more, and operations by type. launch: seconds of one."""

    bytes: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    launch: float | None = None


def cells(small: bool) -> Iterator[Cell]:
    count = 2**14 if small else 2**29  # 1 GiB of bfloat16
    yield Cell(
        op=COPY, scheme="1 GiB", M=count, peers=(COPY,), prepare=partial(copied, count),
        bytes=lambda name: 4.0 * count,
    )  # fmt: skip
    yield Cell(
        op=READ, scheme="1 GiB", M=count, peers=("sum", "max"),
        prepare=partial(reads, count, True), bytes=lambda name: 2.0 * count,
    )  # fmt: skip
    few = 2**12 if small else 2**23  # 16 MB: they stay in L2, unless others come between
    for scheme in ("16 MB, hot", "16 MB, cold"):
        yield Cell(
            op="cache", scheme=scheme, M=few, peers=("sum", "max"),
            prepare=partial(reads, few, "hot" in scheme),
            bytes=lambda name: 2.0 * few,
        )  # fmt: skip
    yield Cell(op=LAUNCH, scheme="one number", M=1, peers=("add",), prepare=launches)
    for size in (64, 128) if small else (4096, 8192, 16384):
        yield Cell(
            op="matmul", scheme="vendor", M=size, N=size, K=size, peers=("bf16", "int8", "fp8"),
            prepare=partial(products, size),
            operations=2.0 * size**3, kind=lambda name: name,
        )  # fmt: skip


def copied(count: int, device: torch.device) -> Contenders:
    x = torch.randn(count, device=device).bfloat16()
    y = torch.empty_like(x)
    return Contenders(calls={COPY: lambda copy: y.copy_(x)}, copies=1, wrong=always_right)


def reads(count: int, is_hot: bool, device: torch.device) -> Contenders:
    copies = 1 if is_hot else copies_of(2 * count, device)
    held = [torch.randn(count, device=device).bfloat16() for _ in range(copies)]
    return Contenders(
        calls={"sum": lambda copy: held[copy].sum(), "max": lambda copy: held[copy].amax()}, copies=copies,
        wrong=always_right,
    )  # fmt: skip


def launches(device: torch.device) -> Contenders:
    x = torch.zeros(1, device=device)
    return Contenders(calls={"add": lambda copy: x.add_(1)}, copies=LAUNCHES, wrong=always_right)


def products(size: int, device: torch.device) -> Contenders:
    x, w = activations(size, size, torch.bfloat16, device), weights(size, size, torch.bfloat16, device)
    (a, _), (b, _) = quantize_rows(x, "int8"), quantize_rows(w, "int8")
    (c, s), (d, t) = quantize_rows(x, "e4m3"), quantize_rows(w, "e4m3")

    def fp8(copy: int) -> Tensor:
        return torch._scaled_mm(
            c, d.t(), scale_a=s[:, None], scale_b=t[None, :], out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return Contenders(
        calls={
            "bf16": lambda copy: x @ w.t(), "int8": lambda copy: torch._int_mm(a, b.t()), "fp8": fp8,
        }, copies=1, wrong=always_right,
    )  # fmt: skip


def ceilings(figures: Iterable[Figure]) -> Ceilings:
    """What is known of them so far."""
    mine = [one for one in figures if one.stage == STAGE and one.status == OK]
    bandwidths = [one.bytes / one.median for one in mine if one.op in (COPY, READ)]
    rates: dict[str, float] = {}
    for one in mine:
        if one.op == "matmul":
            rates[one.kind] = max(rates.get(one.kind, 0.0), one.operations / one.median)
    launch = [one.median for one in mine if one.op == LAUNCH]
    return Ceilings(bytes=max(bandwidths, default=None), rates=rates, launch=min(launch, default=None))


def shares(figure: Figure, of: Ceilings) -> tuple[float | None, float | None]:
    """Of the bytes and of the operations per second that were measured."""
    if figure.status != OK:
        return None, None
    rate = of.rates.get(figure.kind)
    memory = figure.bytes / figure.median / of.bytes if of.bytes and figure.bytes else None
    return memory, figure.operations / figure.median / rate if rate and figure.operations else None


def beyond(figures: Sequence[Figure], of: Ceilings, device: str) -> list[str]:
    """Cells that no device can have reached: more bytes than were measured, more operations than are sold.

    A kernel of ours may be faster than a vendor's, so operations are held to the data sheet.
    """
    sold = next((rate for name, rate in SHEET.items() if device.startswith(name)), None)
    found = []
    for one in figures:
        if one.status != OK or one.op == "cache":
            continue
        title = f"{one.stage}, {one.op} {one.scheme} M {one.M} N {one.N} K {one.K}, {one.contender}"
        memory, _ = shares(one, of)
        if memory is not None and memory > NOISE and one.stage != STAGE:
            found.append(f"{title}: {memory:.0%} of the memory's speed")
        peak = sold and sold * (1 if one.kind == "bf16" else 2)
        if peak and one.operations / one.median > NOISE * peak:
            found.append(f"{title}: {one.operations / one.median / peak:.0%} of the data sheet's operations")
    return found
