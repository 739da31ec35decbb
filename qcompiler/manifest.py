"""Everything needed to make the same model again; no clock and no path, so that bytes repeat."""

import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import Any

from qcompiler import evidence
from qcompiler.backends.base import Backend
from qcompiler.ir import fingerprint
from qcompiler.job import Job, data_hash
from qcompiler.proof import Proof
from qcompiler.recipe import recipe_to_mapping
from qcompiler.target.machine import this_cpu

VERSIONED = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "apache-tvm", "apache-tvm-ffi")


def describe(
    job: Job, shipped: Proof, backend: Backend, *, kept: str, threads: int | None, seed: int
) -> dict[str, Any]:
    """The manifest of what ships; `kept` says whether the speed guard gave anything back to float."""
    found = shipped.distance
    return {
        "model": job.name,
        "recipe": recipe_to_mapping(shipped.decision.recipe),
        "target": shipped.decision.target.name,
        "backend": backend.name,
        "kept": kept,
        "seed": seed,
        "data_hash": data_hash(job),
        "graph_hash": fingerprint(shipped.graph),
        "versions": versions(),
        "cpu": {"name": this_cpu().name, "features": list(this_cpu().features)},
        "session": dict(backend.settings(shipped.graph, threads=threads)),
        "metrics": {
            "sqnr_db": evidence.number(found.sqnr_db),
            "max_lsb": found.max_lsb,
            "agreement": found.agreement,
        },
    }


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("qcompiler", *VERSIONED)}


def warn_of_other_cpu(saved: Mapping[str, Any]) -> None:
    """Integer kernels without VNNI may saturate: refuse to be silent about another CPU."""
    made_on = set(saved.get("cpu", {}).get("features", ()))
    missing = sorted(name for name in made_on - set(this_cpu().features) if "vnni" in name)
    if missing:
        warnings.warn(
            f"this model was made for a CPU with {', '.join(missing)}, which this one lacks: "
            "results may saturate and differ; compile it here again",
            stacklevel=3,
        )
