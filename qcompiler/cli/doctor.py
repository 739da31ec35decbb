"""`qcompiler doctor`: is everything here that is needed, and what will this machine be good at."""

import importlib
import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import typer
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from qcompiler.cli.screen import complain, show
from qcompiler.errors import EngineError, TargetError

# Where the name to import is not the name to install.
IMPORTED_AS = {"scikit-learn": "sklearn", "apache-tvm": "tvm", "apache-tvm-ffi": "tvm_ffi"}
COLOURS = {"ok": "green", "optional": "dim", "missing": "red", "old": "red", "broken": "red"}
FAULTS = ("missing", "old", "broken")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, what is there, and whether that will do."""

    what: str
    found: str
    state: str
    remark: str = ""


def run() -> None:
    """Check the installation and this machine.

    Exit code 1 if something needed is missing, too old or broken.
    """
    python = Finding(what="python", found=platform.python_version(), state="ok")
    findings = [python, *packages(), *machine(), *kernels(), *gpu()]
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        state = Text(finding.state, style=COLOURS[finding.state])
        table.add_row(finding.what, finding.found, state, Text(finding.remark))
    show(table)
    faults = [finding.what for finding in findings if finding.state in FAULTS]
    if faults:
        complain(f"{', '.join(faults)} will not do; `pip install --upgrade qcompiler` mends most of it")
        raise typer.Exit(1)


def packages() -> Iterator[Finding]:
    """Every requirement of the installed package, tried by importing it."""
    required = [Requirement(line) for line in importlib.metadata.requires("qcompiler") or ()]
    for need in required:
        extra = next(
            (name for name in ("models", "gpu", "rpc") if applies(need, name) and not applies(need, "")), None
        )
        if applies(need, "") or extra:
            yield package(need, extra)


def applies(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def package(need: Requirement, extra: str | None) -> Finding:
    """`extra` names the optional group that brings it; only what is no option can be a fault when absent."""
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        state, remark = (
            ("optional", f"pip install 'qcompiler[{extra}]'") if extra else ("missing", f"needs {need}")
        )
        return Finding(what=need.name, found="–", state=state, remark=remark)
    if not need.specifier.contains(version, prereleases=True):
        return Finding(what=need.name, found=version, state="old", remark=f"tried with {need.specifier}")
    try:
        importlib.import_module(IMPORTED_AS.get(need.name, need.name))
    except Exception as error:  # a broken package may raise anything
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding(what=need.name, found=version, state="broken", remark=first[:200])
    return Finding(what=need.name, found=version, state="ok", remark=str(need.specifier))


def machine() -> Iterator[Finding]:
    """The CPU, what its instructions mean for integers, and what ONNX Runtime can run on."""
    from qcompiler.target.machine import this_cpu

    cpu = this_cpu()
    yield Finding(what="cpu", found=cpu.name, state="ok", remark=", ".join(cpu.features))
    vnni = any("vnni" in name for name in cpu.features)
    yield Finding(
        what="vnni", found="yes" if vnni else "no", state="ok",
        remark="int8 products are exact and fast" if vnni
        else "int8 is slower, and weights use 7 bits so that sums do not saturate",
    )  # fmt: skip
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except Exception:  # said above
        return
    state = "ok" if "CPUExecutionProvider" in providers else "broken"
    yield Finding(what="providers", found=f"{len(providers)}", state=state, remark=", ".join(providers))


def kernels() -> Iterator[Finding]:
    """What kernels of our own run on here, and their self-tests."""
    try:
        from qcompiler.backends.tvm import chosen
        from qcompiler.backends.tvm.selftest import SELF_TESTS
    except Exception:  # said above
        return
    try:
        isa = chosen(None)
    except TargetError as error:
        yield Finding(what="kernels", found="–", state="optional", remark=str(error))
        return
    yield Finding(what="kernels", found=isa.name, state="ok", remark="instruction set of backend 'tvm'")
    for name, test in SELF_TESTS.items():
        try:
            yield Finding(what=f"  {name}", found="", state="ok", remark=test(isa))
        except EngineError as error:
            yield Finding(what=f"  {name}", found="", state="broken", remark=str(error))


def gpu() -> Iterator[Finding]:
    """Whether models for target 'cuda' run here on their device, or are only checked on the CPU."""
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            what="gpu", found="–", state="optional",
            remark="models for target 'cuda' are checked on the CPU, and not timed",
        )  # fmt: skip
        return
    major, minor = torch.cuda.get_device_capability()
    fit = (major, minor) >= (8, 0)
    yield Finding(
        what="gpu", found=torch.cuda.get_device_name(), state="ok" if fit else "optional",
        remark=f"compute capability {major}.{minor}; kernels of backend 'triton' "
        + ("run here" if fit else "want 8.0"),
    )  # fmt: skip
