"""Cutting a joint graph in two.

joint --min-cut--> forward, backward
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch import config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._ops import OpOverload
from torch.utils.flop_counter import FlopCounterMode

from qcompiler.passes.training.derivatives import save_derivatives
from qcompiler.passes.training.generators import forget_generators
from qcompiler.passes.training.graphs import duplicate, result
from qcompiler.passes.training.halves import Halves, is_tensor
from qcompiler.passes.training.implied import imply
from qcompiler.passes.training.noise import carry_keys
from qcompiler.passes.training.norms import normalize
from qcompiler.passes.training.recompute import mark
from qcompiler.passes.training.shapes import forget_values
from qcompiler.passes.training.shared import share


@dataclass(frozen=True, kw_only=True, eq=False)
class Cutting:
    """A joint graph with all that torch's partitioner wants to know: what its backend is called with.

    parameters: positions, among the inputs, of what never changes in a step. outputs: of forward, the user's.
    """

    joint: fx.GraphModule
    inputs: Any
    parameters: Sequence[int]
    outputs: int
    rest: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the first input is."""
        device: torch.device = next(filter(is_tensor, self.joint.graph.nodes)).meta["val"].device
        return device

    def cut(self, again: Collection[str] = ()) -> Halves:
        """The two halves of the joint graph, which itself stays as it is.

        again: names of products that backward computes again, instead of forward keeping what comes of them.
        """
        whole = duplicate(self.joint)
        mark(whole, again, self.parameters)
        primals = [node.name for node in whole.graph.find_nodes(op="placeholder")]
        # States of generators cross as tensors: the other way adds inputs to both, which nobody would give.
        with config.patch(graphsafe_rng_functionalization=False):
            forward, backward = min_cut_rematerialization_partition(
                whole,
                self.inputs,
                num_fwd_outputs=self.outputs,
                static_lifetime_input_indices=list(self.parameters),
                **self.rest,
            )
        halves = Halves(
            forward=forward,
            backward=backward,
            outputs=self.outputs,
            parameters=frozenset(primals[position] for position in self.parameters),
        )
        forget_generators(halves)
        halves.finish()
        return halves


def prepare(halves: Halves, *, frugal: bool = False) -> None:
    """Bring what crosses into the form that is stored: keys, derivatives, nothing twice or for its shape."""
    carry_keys(halves)
    forget_values(halves.backward.graph)
    save_derivatives(halves, frugal=frugal)
    normalize(halves)
    imply(halves)
    share(halves)


def work(halves: Halves) -> int:
    """Floating-point operations of the products and convolutions of both halves."""
    nodes = [*halves.forward.graph.nodes, *halves.backward.graph.nodes]
    with FlopCounterMode(display=False) as counter:
        for node in nodes:
            if isinstance(node.target, OpOverload):  # what wraps others, the counter does not know
                result(node)
    return int(counter.get_total_flops())


def is_real(inputs: Sequence[Any]) -> bool:
    """Whether inputs are tensors that hold numbers, and not stand-ins for those of later calls."""
    fake = torch._subclasses.FakeTensor
    return not any(isinstance(x, fake) or (isinstance(x, torch.Tensor) and x.is_meta) for x in inputs)
