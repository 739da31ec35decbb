"""What a kernel's machine code is like, without a GPU: compiled for a device, and read back disassembled.

    kernel, types, constants, configuration  -->  PTX  -->  cubin  -->  Findings  -->  faults, in sentences

Registers, stack and shared memory are the assembler's own figures; the rest is counted in the instructions.
The tools that disassemble lie in Triton's own wheel.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qcompiler.backends.triton.configurations import Bounds, Configuration, shared_of
from qcompiler.errors import LoweringError

REGISTER_FILE = 65536  # registers of one multiprocessor, which a program's threads share
MMA = ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "QMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA")
LOADS = ("LDG", "LDGSTS", "UTMALDG")
INEXACT = r"^\s*(?:@!?%\w+\s+)?(?:fma\.|[a-z0-9]+\.(?:full|approx|ftz)\b|[a-z0-9]+\.\w+\.ftz\b)"  # in PTX
ONES = 0x3F803F80  # two of bfloat16
READER = 6  # counted up when the same machine code would be read in another way


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was compiled, as it is.

    registers: of a thread. stack: bytes of one. shared: bytes of a program. spills: instructions that store
    registers to memory and load them back (STL, LDL). mma: matrix instructions by family. shapes: the same
    with their sizes. wide_loads: instructions that load 16 bytes a thread (LDG, LDGSTS) or a tile (UTMALDG).
    wide_stores: those that store 16 bytes a thread (STG). permutes: PRMT. inexact: instructions of the PTX
    that may round otherwise than one operation of IEEE 754 after another would: contracted, approximate or
    flushing ones. size: bytes of the cubin.
    """

    capability: int
    threads: int
    registers: int
    stack: int
    shared: int
    spills: int
    mma: Mapping[str, int]
    shapes: tuple[str, ...]
    wide_loads: int
    wide_stores: int
    permutes: int
    inexact: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Types:
    """What a kernel is called with: "*i8", "*bf16", "i32" ... by argument, None for one that is left out.

    aligned: numbers that are multiples of 16, as sizes and strides of codes are; pointers always are.
    """

    arguments: Mapping[str, str | None]
    aligned: frozenset[str]


def findings(
    kernel: Any,
    types: Types,
    constants: Mapping[str, Any],
    configuration: Configuration,
    *,
    capability: int,
    cache: Path | None = None,
) -> Findings:
    """Compile for a compute capability and read the machine code; a cache remembers by source and options.

    constants: those beside the configuration's. LoweringError where the kernel is interpreted, or where the
    device cannot do what it asks for.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name = getattr(kernel, "__name__", str(kernel))
    if not isinstance(kernel, triton.JITFunction):
        raise LoweringError(
            f"compiling {name}",
            why="it is interpreted in this process",
            fix="start one in which TRITON_INTERPRET is not set",
        )
    defaults = {one.name: one.default for one in kernel.params if one.has_default}
    fixed = {name: value for name, value in defaults.items() if name not in types.arguments}
    fixed |= {**constants, **configuration.constants}
    fixed |= {argument: None for argument, kind in types.arguments.items() if kind is None}
    signature = {
        argument: "constexpr" if argument in fixed else str(types.arguments[argument])
        for argument in kernel.arg_names
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (argument, kind) in enumerate(signature.items())
        if kind != "constexpr" and (kind.startswith("*") or argument in types.aligned)
    }
    source = ASTSource(kernel, signature, fixed, aligned)
    options = {**configuration.options, "enable_fp_fusion": False}
    words = (READER, triton.__version__, source.hash(), capability, sorted(options.items()))
    key = hashlib.sha256(repr(words).encode()).hexdigest()
    kept = cache / f"{key}.json" if cache else None
    if kept and kept.exists():
        return remembered(kept.read_text(encoding="utf-8"))
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:  # Triton's own are many, and differ between its versions
        raise LoweringError(
            f"compiling {name} for compute capability {capability / 10}", why=last_line(error)
        ) from error
    found = read(
        compiled.asm["ptx"],
        compiled.asm["cubin"],
        capability,
        32 * configuration.warps,
        compiled.metadata.shared,
    )
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        written = kept.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(asdict(found)), encoding="utf-8")
        written.replace(kept)
    return found


def remembered(text: str) -> Findings:
    fields = json.loads(text)
    return Findings(**{**fields, "shapes": tuple(fields["shapes"])})


def last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def read(ptx: str, cubin: bytes, capability: int, threads: int, shared: int) -> Findings:
    """The assembler's figures and the counted instructions of a cubin and of its PTX."""
    from triton.backends import nvidia

    tools = Path(nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = output(tools / "cuobjdump", "-res-usage", path)
        code = output(tools / "nvdisasm", path)
    figures = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if figures is None:
        raise LoweringError("reading machine code", why=f"cuobjdump says nothing of registers: {usage[:200]}")
    counts = instructions(code)
    families = {family: count(counts, family) for family in MMA}
    return Findings(
        capability=capability,
        threads=threads,
        registers=int(figures[1]),
        stack=int(figures[2]),
        shared=shared,
        spills=count(counts, "STL") + count(counts, "LDL"),
        mma={family: number for family, number in families.items() if number},
        shapes=tuple(sorted(name for name in counts if name.split(".")[0] in MMA)),
        wide_loads=sum(number for name, number in counts.items() if is_wide(name, LOADS)),
        wide_stores=sum(number for name, number in counts.items() if is_wide(name, ("STG",))),
        permutes=count(counts, "PRMT"),
        inexact=len(re.findall(INEXACT, without_sums(ptx), re.MULTILINE)),
        size=len(cubin),
    )


def without_sums(ptx: str) -> str:
    """PTX but for 1 x + y of bfloat16, which rounds once: devices before 9.0 add in no other way."""
    for one in set(re.findall(rf"mov\.b32\s+(%r\d+), {ONES};", ptx)):
        ptx = re.sub(rf"fma\.rn\.bf16x2\s+%r\d+, %r\d+, {one}, %r\d+;", "", ptx)
    return ptx


def output(tool: Path, *arguments: object) -> str:
    done = subprocess.run([str(tool), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoweringError(
            f"{tool.name} failed", why=done.stderr.strip() or f"it ended with {done.returncode}"
        )
    return done.stdout


def instructions(code: str) -> Counter[str]:
    """How often each instruction stands in disassembled code, by its name with all its parts."""
    return Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE))


def count(counts: Counter[str], opcode: str) -> int:
    return sum(number for name, number in counts.items() if name.split(".")[0] == opcode)


def is_wide(name: str, opcodes: Collection[str]) -> bool:
    opcode, *parts = name.split(".")
    return opcode in opcodes and (opcode == "UTMALDG" or "128" in parts)


def faults(found: Findings, bounds: Bounds) -> list[str]:
    """What machine code has that it may not, or lacks, in sentences; none where it is fit."""
    limit = min(bounds.shared, shared_of(found.capability))
    families = " and ".join(found.mma) or "none"
    checks = (
        (found.stack > 0 or found.spills > 0,
         f"registers are spilled: {found.stack} bytes of stack, {found.spills} loads and stores of them"),
        (found.registers > bounds.registers,
         f"{found.registers} registers a thread, {bounds.registers} are allowed"),
        (found.registers * found.threads > REGISTER_FILE,
         f"{found.threads} threads of {found.registers} registers do not fit into {REGISTER_FILE}"),
        (found.shared > limit, f"{found.shared} bytes of shared memory, {limit} are allowed"),
        (set(found.mma) != {bounds.mma} - {""},
         f"matrix instructions are {families}, {bounds.mma or 'none'} expected"),
        (found.wide_loads < bounds.wide_loads,
         f"{found.wide_loads} loads of 16 bytes or tiles, {bounds.wide_loads} are expected"),
        (found.wide_stores < bounds.wide_stores,
         f"{found.wide_stores} stores of 16 bytes, {bounds.wide_stores} are expected"),
        (found.permutes > bounds.permutes,
         f"{found.permutes} instructions permute bytes, {bounds.permutes} are allowed: an operand may lie "
         "in the wrong order"),
        (bounds.exact and found.inexact > 0,
         f"{found.inexact} instructions may round otherwise than the reference"),
    )  # fmt: skip
    return [sentence for is_fault, sentence in checks if is_fault]
