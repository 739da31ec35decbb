"""Recurrent layers: torch traces their steps, but for the LSTM of CPUs, which it fuses for inference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx


@contextmanager
def step_by_step(module: fx.GraphModule) -> Iterator[None]:
    """Trace a graph's LSTMs as their steps: oneDNN's layer, which torch would trace, has no backward."""
    was = torch._C._get_mkldnn_enabled()
    is_recurrent = bool(module.graph.find_nodes(op="call_function", target=torch.lstm))
    torch._C._set_mkldnn_enabled(was and not is_recurrent)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was)
