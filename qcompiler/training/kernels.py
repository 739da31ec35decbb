"""Kernels for a step's stores and draws, by device; without them the reference computes the same numbers."""

from collections.abc import Callable, Mapping

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.errors import QCompilerError


def provide(device: torch.device) -> str:
    """See to kernels for a device; "", or why the reference computes there instead."""
    if device.type not in INSTALLED:
        return ""
    library, install = INSTALLED[device.type]
    try:
        # Graphs are captured on tensors that hold nothing, and a self-test computes.
        with _disable_current_modes():
            install(device)
    except (ImportError, OSError) as error:
        return f"{library} cannot be imported: {error}"
    except QCompilerError as error:
        return str(error)
    return ""


def on_a_cpu(device: torch.device) -> None:
    from qcompiler.backends.tvm.training import install

    install()


def on_cuda(device: torch.device) -> None:
    from qcompiler.backends.triton.ops.install import install

    install(device)


INSTALLED: Mapping[str, tuple[str, Callable[[torch.device], None]]] = {
    "cpu": ("TVM", on_a_cpu),
    "cuda": ("Triton", on_cuda),
}
"""What the kernels of a device are written in, and how it gets them."""
