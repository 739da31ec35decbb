"""Kernels that memory bounds, beside a copy of the same input: codes, norms, transforms, saved activations.

of_copy = (bytes / time) / (bytes of the copy / its time)      of the same round, the median of rounds

bytes: what each number costs at least, so a kernel that reads it twice is charged for both reads only where
no other way is known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_contest import COPY, OPS, Cell, op
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.products import activations
from qcompiler.ir.storage import recall, store
from qcompiler.numerics.hadamard import hadamard
from qcompiler.numerics.philox import noise_key

COLUMNS = 4096
SIZES = (2**26, 2**24, 2**28)  # numbers
EPS = 1e-6
BLOCK = 128  # of the Hadamard transform
KEPT = 64  # rows, and columns, that are computed again on the CPU
OURS, APART = "triton", "apart"
DTYPE = torch.bfloat16

Result = Sequence[Tensor]
Call = Callable[[int], Result]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Contenders by name, and why what one of ours made of the first copy is wrong."""

    calls: Mapping[str, Call]
    wrong: Callable[[Result], str]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kernel: bytes of each number that it has to read and write, and how it is called on copies of x."""

    op: str
    scheme: str
    needs: str
    kernel: str
    bytes: float
    make: Callable[[str, list[Tensor]], Made]
    apart: bool = False


def cells(small: bool) -> Iterator[Cell]:
    for count in (2**12,) if small else SIZES:
        for kind in KINDS:
            yield cell(kind, count // (64 if small else COLUMNS), 64 if small else COLUMNS)


def cell(kind: Kind, M: int, K: int) -> Cell:
    return Cell(
        op=kind.op, scheme=kind.scheme, M=M, K=K, prepare=partial(prepare, kind, M, K), needs=(kind.needs,),
        peers=(COPY, APART) if kind.apart else (COPY,), kernel=kind.kernel,
        bytes=lambda name: {COPY: 4.0, OURS: kind.bytes}.get(name, 0.0) * M * K,
    )  # fmt: skip


def prepare(kind: Kind, M: int, K: int, device: torch.device) -> Contenders:
    """Results stay where they are until the copy's turn comes again: nothing is written to L2 alone."""
    copies = copies_of(2 * M * K, device)
    x = [activations(M, K, DTYPE, device) for _ in range(copies)]
    made = kind.make(kind.scheme, x)
    calls: dict[str, Call] = {COPY: lambda copy: [x[copy].clone()], **made.calls}
    kept: dict[tuple[str, int], Result] = {}

    def keeping(name: str, copy: int) -> Tensor:
        kept[name, copy] = calls[name](copy)
        return kept[name, copy][0]

    def wrong(name: str, found: Tensor) -> str:
        return "" if name in (COPY, APART) else made.wrong(kept[name, 0])

    return Contenders(calls={name: partial(keeping, name) for name in calls}, copies=copies, wrong=wrong)


def differs(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """Why what a device made is not what the CPU makes, bit by bit."""
    off = [int((one.cpu().float() != other.float()).sum()) for one, other in zip(found, wanted, strict=True)]
    return f"{off} numbers are not those of the CPU" if any(off) else ""


def picked(found: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """Some rows of each, in float32: that all codes are exact in, and torch can pick from."""
    return [one.float()[rows] for one in found]


def some(count: int, device: torch.device) -> Tensor:
    return torch.randperm(count, device=device)[:KEPT]


# ---------------------------------------------------------------- the kernels


def codes(scheme: str, x: list[Tensor]) -> Made:
    rows = some(len(x[0]), x[0].device)
    wanted = quantize_rows(x[0][rows].cpu(), scheme)
    return Made(
        calls={OURS: lambda copy: op("quantize_rows")(x[copy], scheme)},
        wrong=lambda found: differs(picked(found, rows), wanted),
    )


def codes_both(scheme: str, x: list[Tensor]) -> Made:
    rows, columns = some(len(x[0]), x[0].device), some(x[0].shape[1], x[0].device)
    wanted = (
        *quantize_rows(x[0][rows].cpu(), scheme),
        *quantize_rows(x[0][:, columns].t().contiguous().cpu(), scheme),
    )

    def apart(copy: int) -> Result:
        return (*quantize_rows(x[copy], scheme), *quantize_rows(x[copy].t().contiguous(), scheme))

    def wrong(found: Result) -> str:
        q, s, r, t = found
        return differs([*picked((q, s), rows), *picked((r, t), columns)], wanted)

    return Made(calls={OURS: lambda copy: op("quantize_both")(x[copy], scheme), APART: apart}, wrong=wrong)


def norms(scheme: str, x: list[Tensor]) -> Made:
    """RMS norm of x + r; the stream goes on in x's type."""
    device, K = x[0].device, x[0].shape[1]
    r, weight = [torch.randn_like(one) for one in x], torch.rand(K, device=device).to(DTYPE)
    rows = some(len(x[0]), device)

    def ours(x: Tensor, r: Tensor, weight: Tensor) -> Result:
        codes, scales, h, _ = op("norm_quantize")(x, r, weight, None, None, "rms", EPS, scheme, False)
        return codes, scales, h

    def apart(copy: int) -> Result:
        h = x[copy] + r[copy]
        return (*quantize_rows(F.rms_norm(h, (K,), weight, EPS), scheme), h)

    wanted = ours(x[0][rows].cpu(), r[0][rows].cpu(), weight.cpu())
    return Made(
        calls={OURS: lambda copy: ours(x[copy], r[copy], weight), APART: apart},
        wrong=lambda found: differs(picked(found, rows), wanted),
    )


def transforms(scheme: str, x: list[Tensor]) -> Made:
    rows, K = some(len(x[0]), x[0].device), x[0].shape[1]
    block = min(BLOCK, K)
    matrix = hadamard(block).to(x[0].device, DTYPE)
    wanted = op("hadamard_quantize")(x[0][rows].cpu(), block, scheme)

    def apart(copy: int) -> Result:
        turned = (x[copy].view(-1, K // block, block) @ matrix).view(-1, K)
        made: Result = quantize_rows(turned, scheme)
        return made

    return Made(
        calls={OURS: lambda copy: op("hadamard_quantize")(x[copy], block, scheme), APART: apart},
        wrong=lambda found: differs(picked(found, rows), wanted),
    )


def first(x: Tensor) -> Tensor:
    """Whole groups of the first rows: draws depend on an element's place."""
    return x[: max(1, 2**16 // x.shape[1])].cpu()


def installed(device: torch.device) -> None:
    """Kernels for what a training step stores are not there by themselves."""
    if device.type == "cuda":
        from importlib import import_module

        import_module(f"{OPS}install").install(device)


def packs(scheme: str, x: list[Tensor]) -> Made:
    installed(x[0].device)
    bits, key = int(scheme.removesuffix(" bits")), noise_key(1, 2, 3)
    its = key.to(x[0].device)
    wanted = store(first(x[0]), key, 0, bits)
    return Made(
        calls={OURS: lambda copy: store(x[copy], its, 0, bits)},
        wrong=lambda found: differs(
            [one[: len(other)] for one, other in zip(found, wanted, strict=True)], wanted
        ),
    )


def unpacks(scheme: str, x: list[Tensor]) -> Made:
    installed(x[0].device)
    bits, key = int(scheme.removesuffix(" bits")), noise_key(1, 2, 3)
    held = [store(one, key.to(one.device), 0, bits) for one in x]
    few = first(x[0])
    wanted = [unpacked(store(few, key, 0, bits), few, bits)]

    def wrong(found: Result) -> str:
        return differs([found[0][: len(few)]], wanted)

    return Made(calls={OURS: lambda copy: [unpacked(held[copy], x[copy], bits)]}, wrong=wrong)


def unpacked(stored: Result, like: Tensor, bits: int) -> Tensor:
    y: Tensor = recall(*stored, bits, [*like.shape], [*like.stride()], like.dtype)
    return y


def kinds() -> Iterator[Kind]:
    group = 4 / 256  # bytes of a group's minimum and step, for each number
    for scheme in ("int8", "e4m3"):
        yield Kind(
            op="quantize_rows", scheme=scheme, needs=f"{OPS}quantize", kernel="quantize_rows", bytes=3.0,
            make=codes,
        )  # fmt: skip
        yield Kind(
            op="norm_quantize", scheme=scheme, needs=f"{OPS}norm", kernel="norm_quantize", bytes=7.0,
            make=norms, apart=True,
        )  # fmt: skip
        yield Kind(  # a column does not fit on a chip, so everything is read twice
            op="quantize_both", scheme=scheme, needs=f"{OPS}quantize_both", kernel="quantize_both", bytes=6.0,
            make=codes_both, apart=True,
        )  # fmt: skip
        yield Kind(
            op="hadamard_quantize", scheme=scheme, needs=f"{OPS}hadamard", kernel="hadamard_quantize",
            bytes=3.0, make=transforms, apart=True,
        )  # fmt: skip
    for bits in (4, 2):
        for name, make in (("store", packs), ("recall", unpacks)):
            yield Kind(
                op=name, scheme=f"{bits} bits", needs=f"{OPS}install", kernel=name,
                bytes=2 + bits / 8 + group, make=make,
            )  # fmt: skip


KINDS: tuple[Kind, ...] = (*kinds(),)
