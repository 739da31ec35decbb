"""Where the time goes: time per node of the model that runs on one thread, from ONNX Runtime's profiler."""

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from qcompiler.backends.ort.contract import planned_name
from qcompiler.backends.ort.session import Settings, open_session, run_session

WARM_UP = 2


def profile_nodes(
    model: Path, inputs: Sequence[Tensor], settings: Settings, *, runs: int = 7
) -> dict[str, float]:
    """Planned node name -> median microseconds per run; Q/DQ and layout nodes under their own names."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        session = open_session(model, replace(settings, threads=1), profile=Path(folder) / "profile")
        for _ in range(WARM_UP + runs):
            run_session(session, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            times[str(event["name"]).removesuffix("_kernel_time")].append(float(event["dur"]))
    found: dict[str, float] = defaultdict(float)
    for name, durations in times.items():
        # A node that runs several times per pass (none does today) would be averaged, not summed.
        found[planned_name(name)] += statistics.median(durations[WARM_UP:] or durations)
    return dict(found)
