"""Kernels for a step's stores and draws, by device; without them the reference computes the same numbers."""

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.errors import QCompilerError


def provide(device: torch.device) -> str:
    """See to kernels for a device; "", or why the reference computes there instead."""
    return on_a_cpu() if device.type == "cpu" else ""


def on_a_cpu() -> str:
    try:
        from qcompiler.backends.tvm.training import install

        # Graphs are captured on tensors that hold nothing, and a self-test computes.
        with _disable_current_modes():
            install()
    except (ImportError, OSError) as error:
        return f"TVM cannot be imported: {error}"
    except QCompilerError as error:
        return str(error)
    return ""
