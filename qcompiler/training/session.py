"""A model's training, piece by piece: what torch.compile calls with each graph of forward that it captures.

joint graph --products--> joint' --partition--> forward, backward --derivatives, store--> the same, smaller
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from qcompiler.passes.training.derivatives import save_derivatives
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.liveness import Peak, peak
from qcompiler.passes.training.noise import carry_keys
from qcompiler.passes.training.products import Computed, compute
from qcompiler.passes.training.saved import Saved, saved
from qcompiler.passes.training.shapes import forget_values
from qcompiler.passes.training.store import store
from qcompiler.training.kernels import prepare
from qcompiler.training.lower import Boxed, Lowering, find_lowering, keyed, lower, with_key
from qcompiler.training.memory import Memory, find_memory
from qcompiler.training.noise import Noise
from qcompiler.training_recipe import TrainingRecipe, find_training_recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """What became of one graph of the model: its products, and what crosses from forward to backward.

    bits: of each value that is stored. names: of parameters, by the inputs that they are. before, after: the
    peaks of a step. slow: why the reference stores and draws on this CPU, where kernels do not.
    """

    products: tuple[Computed, ...]
    saved: tuple[Saved, ...]
    bits: dict[str, int]
    names: dict[str, str]
    before: Peak
    after: Peak
    slow: str = ""


class Training:
    """How one model is trained; a backend of torch.compile. `pieces` tell what became of its graphs.

    recipe: in which formats products are computed. memory: what is kept for backward, and in how many bits.
    seed: of all noise; the same seed, model and calls give the same bits again.
    """

    def __init__(
        self,
        *,
        recipe: str | TrainingRecipe = "float",
        memory: str | Memory = "keep",
        lowering: str = "auto",
        seed: int = 0,
    ) -> None:
        self.recipe = find_training_recipe(recipe)
        self.memory = find_memory(memory)
        self.lowering = lowering
        find_lowering(lowering, ())
        self.noise = Noise(seed)
        self.pieces: list[Piece] = []

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """What torch.compile runs for this graph from now on."""
        return Graph(self, module, inputs).run


class Graph:
    """One captured graph on its way: AOTAutograd calls back with the joint graph, and then with each half."""

    def __init__(self, training: Training, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.training = training
        self.names = [readable(str(node.target)) for node in module.graph.find_nodes(op="placeholder")]
        self.lowering: Lowering = find_lowering(training.lowering, inputs)
        backend = aot_autograd(
            fw_compiler=self.forward,
            bw_compiler=self.backward,
            inference_compiler=self.forward,
            partition_fn=self.partition,
        )
        self.run: Callable[..., Any] = backend(module, inputs)

    def partition(
        self,
        joint: fx.GraphModule,
        inputs: Any,
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **rest: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Split a joint graph, and store what crosses. torch calls it again for graphs inside of graphs."""
        training = self.training
        positions = list(static_lifetime_input_indices or ())
        primals = [node.name for node in joint.graph.find_nodes(op="placeholder")]
        products = compute(joint, positions, training.recipe, lambda: training.noise.take(1))
        forward, backward = min_cut_rematerialization_partition(
            joint, inputs, num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=positions, **rest
        )
        halves = Halves(
            forward=forward, backward=backward, outputs=num_fwd_outputs,
            parameters=frozenset(primals[position] for position in positions),
        )  # fmt: skip
        halves.finish()
        before = peak(halves)
        carry_keys(halves)
        if training.memory.bits is not None:
            forget_values(halves.backward.graph)
            save_derivatives(halves)
        values = saved(halves)
        bits = training.memory.choose(values)
        first = training.noise.take(len(values))
        store(halves, bits, {value.name: first + place for place, value in enumerate(values)})
        names = dict(zip(primals, self.names, strict=False))
        piece = Piece(
            products=products, saved=values, bits=bits, names=names, before=before, after=peak(halves),
            slow=prepare(forward),
        )  # fmt: skip
        training.pieces.append(piece)
        return forward, backward

    def forward(self, half: fx.GraphModule, inputs: Sequence[Any]) -> Boxed:
        keys = with_key(half)
        run = lower(half, [*inputs, *keys], self.lowering, is_backward=False)
        return keyed(run, keys, self.training.noise.key)

    def backward(self, half: fx.GraphModule, inputs: Sequence[Any]) -> Boxed:
        return lower(half, inputs, self.lowering, is_backward=True)


def readable(name: str) -> str:
    """The name of an input as its model's owner knows it.

    L_self_modules_encoder_modules_fc1_parameters_weight_  -->  encoder.fc1.weight
    """
    inner = re.sub(r"^[Ll]_(self|fn|mod)_", "", name).strip("_")
    return re.sub(r"_?(modules|parameters|buffers)_", ".", inner).strip(".")


def compile_training(
    model: torch.nn.Module,
    *,
    recipe: str | TrainingRecipe = "float",
    memory: str | Memory = "act4",
    lowering: str = "auto",
    seed: int = 0,
) -> torch.nn.Module:
    """Train a model in few bits: the same module, whose forward pass is compiled from its next call on.

    The loop, the optimizer, autocast, gradient clipping and `state_dict` stay the user's. Each new shape of
    the inputs is compiled anew, since what is stored has to have a known size.
    """
    model.compile(backend=Training(recipe=recipe, memory=memory, lowering=lowering, seed=seed), dynamic=False)
    return model
