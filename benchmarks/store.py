"""Prepared models on disk, kept as long as nothing changes that they were made of.

work/resnet18/            float.onnx, module.pt, data.pt        of benchmarks.case
work/resnet18/openvino/   what that peer prepared
prepared.json in both: the fingerprint, the seconds, the size
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.case import Case
from benchmarks.contenders import Contender, digest
from benchmarks.process import Worker
from benchmarks.worker import Prepared, prepare, write
from benchmarks.workloads import WORKLOADS

PATIENCE = 3600.0  # seconds that preparing may take
NOTE = "prepared.json"
# What a case is made of, besides the built-in models.
CASE = ("benchmarks/case.py", "benchmarks/llama.py", "benchmarks/workloads.py")


def kept_case(workload: str, work: Path, *, cores: Sequence[int]) -> Case:
    """The case of a workload, written if it is not there. Raises Lost."""
    case = Case(kind=WORKLOADS[workload].kind, folder=(work / workload).resolve())
    made_of = case_fingerprint()
    if noted(case.folder, made_of) is None:
        cleared(case.folder)
        with Worker(write, workload, case, cores=cores, log=case.folder / "case.log") as worker:
            worker.receive(patience=PATIENCE)
        note(case.folder, made_of, Prepared(seconds=0.0, size=None))
    return case


def kept_contender(name: str, contender: Contender, case: Case, *, cores: Sequence[int]) -> Prepared:
    """What preparing it took; done now if it is not kept. Raises Lost."""
    folder, made_of = case.folder / name, f"{case_fingerprint()} {contender.fingerprint()}"
    found = noted(folder, made_of)
    if found is None:
        cleared(folder)
        with Worker(prepare, name, case, folder, cores=cores, log=case.folder / f"{name}.log") as worker:
            found = worker.receive(patience=PATIENCE)
        note(folder, made_of, found)
    return found


def case_fingerprint() -> str:
    return f"{digest('models', *CASE)} torch {torch.__version__}"


def noted(folder: Path, made_of: str) -> Prepared | None:
    try:
        found = json.loads((folder / NOTE).read_text())
    except FileNotFoundError:
        return None
    return Prepared(**found["prepared"]) if found["made_of"] == made_of else None


def note(folder: Path, made_of: str, prepared: Prepared) -> None:
    written = {"made_of": made_of, "prepared": asdict(prepared)}
    (folder / NOTE).write_text(json.dumps(written, indent=1) + "\n")


def cleared(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def available() -> float | None:
    """MB of memory that programs can still have; None where the system does not say (not on Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))
