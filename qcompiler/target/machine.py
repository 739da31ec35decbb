"""The CPU that this process runs on: name and the instruction sets that decide between fast and slow."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INTERESTING = (
    "avx2", "fma", "avx512f", "avx512vl", "avx512_vnni", "avx512vbmi", "avx_vnni", "avx512_bf16", "amx_int8",
    "amx_bf16", "asimddp", "i8mm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """Name and feature flags, as the kernel of the operating system reports them.

    features: the interesting ones among the flags.
    """

    name: str
    features: tuple[str, ...]
    flags: frozenset[str] = frozenset()


@cache
def this_cpu() -> Cpu:
    """Empty features where the system does not say (only Linux does, on x86 and on ARM)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return Cpu(name=platform.processor() or platform.machine(), features=())
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = frozenset((named.get("flags") or named.get("Features") or "").split())
    return Cpu(
        name=named.get("model name", platform.machine()),
        features=tuple(name for name in INTERESTING if name in flags),
        flags=flags,
    )
