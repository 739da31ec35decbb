"""Cutting a joint graph in two, with less or more that is computed again instead of kept.

joint --min-cut--> forward, backward        share 1: nothing that costs is computed twice; 0: nothing is kept
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._functorch import config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.flop_counter import FlopCounterMode

from qcompiler.passes.training.derivatives import save_derivatives
from qcompiler.passes.training.graphs import duplicate, evaluate_all
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.noise import carry_keys
from qcompiler.passes.training.shapes import forget_values


def cut(
    joint: fx.GraphModule,
    inputs: Any,
    parameters: Sequence[int],
    outputs: int,
    share: float = 1.0,
    **rest: Any,
) -> Halves:
    """The two halves of a joint graph, which itself stays as it is.

    share: of the bytes that would be kept without recomputing; torch's partitioner finds what to keep.
    """
    primals = [node.name for node in joint.graph.find_nodes(op="placeholder")]
    with config.patch(activation_memory_budget=share):
        forward, backward = min_cut_rematerialization_partition(
            duplicate(joint),
            inputs,
            num_fwd_outputs=outputs,
            static_lifetime_input_indices=list(parameters),
            **rest,
        )
    halves = Halves(
        forward=forward,
        backward=backward,
        outputs=outputs,
        parameters=frozenset(primals[position] for position in parameters),
    )
    halves.finish()
    return halves


def prepare(halves: Halves) -> None:
    """Bring what crosses into the form that is stored: keys, derivatives, and nothing for its shape."""
    carry_keys(halves)
    forget_values(halves.backward.graph)
    save_derivatives(halves)


def work(halves: Halves) -> int:
    """Floating-point operations of the products and convolutions of both halves."""
    with FlopCounterMode(display=False) as counter:
        evaluate_all(halves.forward.graph)
        evaluate_all(halves.backward.graph)
    return int(counter.get_total_flops())


def is_real(inputs: Sequence[Any]) -> bool:
    """Whether inputs are tensors that hold numbers, and not stand-ins for those of later calls."""
    fake = torch._subclasses.FakeTensor
    return all(not isinstance(x, fake) for x in inputs)
