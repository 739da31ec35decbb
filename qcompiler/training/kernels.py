"""Kernels for a step's stores and draws, by device; without them the reference computes the same numbers."""

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.errors import QCompilerError


def prepare(forward: fx.GraphModule) -> str:
    """See to kernels for the devices where a step draws; "", or why the reference computes there instead."""
    keys = forward.graph.find_nodes(op="call_function", target=torch.ops.qcompiler.noise_key.default)
    return on_a_cpu() if any(node.args[0].type == "cpu" for node in keys) else ""


def on_a_cpu() -> str:
    try:
        from qcompiler.backends.tvm.training import install

        with (
            _disable_current_modes()
        ):  # graphs are captured on tensors that hold nothing; a self-test computes
            install()
    except (ImportError, OSError) as error:
        return f"TVM cannot be imported: {error}"
    except QCompilerError as error:
        return str(error)
    return ""
