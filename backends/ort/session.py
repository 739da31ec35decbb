"""Running an ONNX model in ONNX Runtime with the settings that make its figures true."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = {"disabled": 0, "basic": 1, "extended": 2, "all": 99}
# Slow in 1.31.1: it replaces an Add and a LayerNormalization and takes ten times as long.
SLOW_FUSIONS = ("SkipLayerNormFusion",)
# Turns MatMul + Add into a Gemm, whose weight in few bits is not recognised when a ReLU follows.
HIDING_FUSIONS = ("MatMulAddFusion",)
# How MatMulNBits computes: 4 rounds its input to 8 bits per block, as the reference does. One step of a
# decoder of 134 M parameters spends 3.2 ms in these kernels; 9.5 and 21 ms at levels 1 and 0.
ACCURACY_LEVEL = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a model needs of a session besides its file; the manifest holds it.

    arena: the engine keeps memory that it has used once. spinning: idle threads wait busily. Denormals cost
    a hundred times a normal number, and mean nothing to a network.
    """

    threads: int | None = None
    level: str = "all"
    disabled: tuple[str, ...] = SLOW_FUSIONS
    accuracy_level: int = ACCURACY_LEVEL
    arena: bool = True
    spinning: bool = False
    denormals_are_zero: bool = True


def open_session(
    model: Path | bytes,
    settings: Settings,
    *,
    optimized: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """An InferenceSession; `optimized` is where it writes the graph that it really runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel(LEVELS[settings.level])
    options.enable_cpu_mem_arena = settings.arena
    options.add_session_config_entry("session.set_denormal_as_zero", flag(settings.denormals_are_zero))
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(settings.accuracy_level))
    options.add_session_config_entry("session.intra_op.allow_spinning", flag(settings.spinning))
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    with flushing_denormals():
        return ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(settings.disabled),
        )


def flag(on: bool) -> str:
    return "1" if on else "0"


SUBNORMAL = 5e-324


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Denormals count as zero inside, and as before afterwards.

    ONNX Runtime sets the mode of the thread that opens a session and leaves it set: every later float
    operation of the caller's program would be another one.
    """
    before = SUBNORMAL == 0.0  # the comparison itself flushes, if the mode is set
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def default_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Names = tuple[list[str], list[str]]


def names_of(session: Any) -> Names:
    """The names of a session's inputs and outputs."""
    return [given.name for given in session.get_inputs()], [result.name for result in session.get_outputs()]


def run_session(session: Any, inputs: Sequence[Tensor], names: Names | None = None) -> list[Tensor]:
    """Feed flat inputs by position; tensors go in and out without a copy where they lie contiguous.

    The engine reads the memory of an input where it is, and a result is the engine's own, which lives as long
    as the tensor does.
    """
    given, returned = names or names_of(session)
    feed = {name: np.ascontiguousarray(x.numpy(force=True)) for name, x in zip(given, inputs, strict=True)}
    with flushing_denormals():
        results = session.run(returned, feed)
    return [torch.from_numpy(np.asarray(y)) for y in results]
