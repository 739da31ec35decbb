"""A model's training, graph by graph: what torch.compile calls with each piece of forward that it captures.

joint --products--> joint' --cut--> forward, backward --derivatives, store--> smaller ones --check--> run
"""

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._guards import CompileContext
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node

from qcompiler.passes.training.delays import SCALE, delay
from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.guard import paces
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.layers import compute_layers
from qcompiler.passes.training.liveness import Peak, peak
from qcompiler.passes.training.noise import SEEN, carry_keys
from qcompiler.passes.training.partition import Cutting, is_real, prepare
from qcompiler.passes.training.plan import Planner
from qcompiler.passes.training.products import Choice, Computed, Delay, Scales, compute
from qcompiler.passes.training.recompute import Kind
from qcompiler.passes.training.saved import Saved, saved
from qcompiler.passes.training.speed import Pace, as_it_runs, speed
from qcompiler.passes.training.store import store
from qcompiler.passes.training.verify import Checked, check
from qcompiler.progress import Tell, silent
from qcompiler.steps import Steps
from qcompiler.training.histories import Histories
from qcompiler.training.kernels import provide
from qcompiler.training.lower import (
    Boxed,
    Lowering,
    find_lowering,
    lower,
    split,
    supplied,
    with_inputs,
    with_key,
    with_results,
)
from qcompiler.training.memory import Memory, find_memory
from qcompiler.training.noise import Noise
from qcompiler.training.recurrent import step_by_step
from qcompiler.training_recipe import TrainingRecipe, find_training_recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """What became of one graph of the model: its products, and what crosses from forward to backward.

    bits: of each value that is stored. names: of the graph's inputs, as the model's owner knows them. before,
    after: the peaks of a step as it would be, and as it is. checked: the step on one batch against float,
    None where it could not be run, because `unchecked`. again: the products that backward computes again.
    slow: why the reference stores and draws on this CPU, where kernels do not. place: which function of the
    model it is of, with which parameters. version: of that function, one for each shape of its inputs.
    """

    products: tuple[Computed, ...]
    saved: tuple[Saved, ...]
    bits: Mapping[str, int]
    names: Mapping[str, str]
    before: Peak
    after: Peak
    checked: Checked | None = None
    unchecked: str = ""
    again: tuple[Kind, ...] = ()
    slow: str = ""
    place: tuple[int, ...] = ()
    version: int = 0


class Training:
    """How one model is trained; a backend of torch.compile. `pieces` tell what became of its graphs.

    recipe: in which formats products are computed. memory: what is kept for backward, and in how many bits.
    verify: run each graph once beside float before it is used, which takes float's memory for that time.
    tolerance: how far gradients may then be from float's, relative; None for what recipe and memory promise.
    guard: leave a product in float where the recipe is for speed and its formats are not faster. Measured in
    each process anew: without it numbers are the same everywhere.
    seed: of all noise; the same seed, model and calls give the same bits again.
    """

    def __init__(
        self,
        *,
        recipe: str | TrainingRecipe = "float",
        memory: str | Memory = "act4",
        lowering: str = "auto",
        verify: bool = True,
        tolerance: float | None = None,
        guard: bool = True,
        seed: int = 0,
        tell: Tell = silent,
        options: Any = None,
    ) -> None:
        self.options = options  # kept alive: torch.compile's own object, by which this training is known
        self.recipe = find_training_recipe(recipe)
        self.memory = find_memory(memory)
        self.lowering, self.verify, self.tell = lowering, verify, tell
        self.tolerance = self.recipe.tolerance + self.memory.tolerance if tolerance is None else tolerance
        find_lowering(lowering, ())
        self.guard = guard and self.recipe.aim == "speed"
        self.noise = Noise(seed)
        self.histories = Histories(self.recipe.delayed.window if self.recipe.delayed else 0)
        self.pieces: list[Piece] = []
        self.weights: list[weakref.ref[Tensor]] = []

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """What torch.compile runs for this graph from now on."""
        self.weights += [weakref.ref(x) for x in inputs if isinstance(x, nn.Parameter)]
        return Graph(self, module, inputs).run

    @property
    def is_plain(self) -> bool:
        """Whether nothing is stored or drawn."""
        return self.recipe.is_float and self.memory == Memory()

    def trains(self, model: nn.Module) -> bool:
        """Whether some graph of it has a parameter of this model."""
        own = {id(parameter) for parameter in model.parameters()}
        return any(id(weight()) in own for weight in self.weights)


class Graph:
    """One captured graph on its way: AOTAutograd calls back with the joint graph, and then with each half."""

    def __init__(self, training: Training, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.training = training
        self.names = [readable(str(node.target)) for node in module.graph.find_nodes(op="placeholder")]
        self.lowering: Lowering = find_lowering(training.lowering, inputs)
        self.inputs = [apart(x) for x in inputs] if is_real(inputs) else None
        at = CompileContext.current_compile_id()
        function, version = (at.frame_id, at.frame_compile_id) if at else (None, None)
        parameters = [id(x) for x in inputs if isinstance(x, nn.Parameter)]
        self.place, self.version = (function or 0, *parameters), version or 0
        self.operands: list[int] = []  # by slot, their rows in the training's histories
        self.told: set[int] = set()  # slots whose magnitudes forward tells
        backend = aot_autograd(
            fw_compiler=self.forward,
            bw_compiler=self.backward,
            inference_compiler=self.forward,
            partition_fn=self.partition,
        )
        with step_by_step(module):
            self.run: Callable[..., Any] = backend(module, inputs)
        self.inputs = None

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
        training, positions = self.training, list(static_lifetime_input_indices or ())
        primals = [node.name for node in joint.graph.find_nodes(op="placeholder")]
        names = dict(zip(primals, self.names, strict=False))
        cutting = Cutting(
            joint=joint, inputs=inputs, parameters=positions, outputs=num_fwd_outputs, rest=rest
        )
        slow = "" if training.is_plain else provide(cutting.device)
        before = cutting.cut()
        would_be = peak(before)
        draw, layer = (lambda: training.noise.take(1)), training.recipe.layer
        products = (
            compute_layers(joint, positions, layer, draw, names)
            if layer
            else compute(
                joint, positions, training.recipe, draw, self.timed if training.guard else None,
                self.delay(names) if training.recipe.delayed else None,
            )
        )  # fmt: skip
        again: tuple[Kind, ...] = ()
        if training.memory.budget is None:
            halves = cutting.cut()
            prepare(halves) if training.memory.bits else carry_keys(halves)
            values = saved(halves)
            bits = training.memory.choose(values)
        else:
            best = self.planner(cutting, training.memory.allowed(would_be.bytes)).plan()
            halves, again, values, bits = best.halves, best.again, best.values, best.bits
        first = training.noise.take(len(values))
        store(halves, bits, {value.name: first + place for place, value in enumerate(values)})
        checked, unchecked = self.check(before, halves, names, is_exact=training.recipe.is_float)
        training.pieces.append(
            Piece(
                products=products, saved=values, bits=bits, names=names, before=would_be, after=peak(halves),
                checked=checked, unchecked=unchecked, again=again, slow=slow,
                place=self.place, version=self.version,
            )
        )  # fmt: skip
        return halves.forward, halves.backward

    def delay(self, names: Mapping[str, str]) -> Delay:
        """What gives operands the scales of their histories; `names` of parameters by their inputs."""
        recipe = self.training.recipe.delayed
        assert recipe is not None
        operands: list[str] = []

        def slot(parameter: str, reader: str) -> int:
            name = f"{names.get(parameter, parameter)} {reader}"
            again = sum(each.split(" #")[0] == name for each in operands)
            operands.append(f"{name} #{again + 1}" if again else name)
            return len(operands) - 1

        def delayed(graph: fx.Graph, choices: Sequence[Choice]) -> Mapping[Choice, Scales]:
            scales = delay(graph, choices, recipe.margin, slot)
            with unset_fake_temporarily():
                self.operands = self.training.histories.find(operands)
            return scales

        return delayed

    def timed(self, choices: Sequence[Choice]) -> list[Pace]:
        """How long products take; told by a bar of our own where the user has none."""
        tell = self.training.tell
        with Steps(visible=tell is silent) as steps:
            return paces(choices, tell=steps.tell if tell is silent else tell)

    def planner(self, cutting: Cutting, budget: int) -> Planner:
        """What plans this graph within so many bytes, on the inputs at hand."""
        with as_it_runs():
            measured = speed(cutting.device)
        return Planner(
            cutting=cutting, batch=self.inputs, budget=budget, limit=self.training.tolerance, speed=measured,
            tell=self.training.tell,
        )  # fmt: skip

    def check(
        self, before: Halves, after: Halves, names: Mapping[str, str], *, is_exact: bool
    ) -> tuple[Checked | None, str]:
        """The step against float on the inputs at hand, or why it cannot be run."""
        if not self.training.verify:
            return None, "it was not wanted"
        if self.inputs is None:
            return None, "the inputs at hand are stand-ins without values"
        if len(self.inputs) != len(after.forward.graph.find_nodes(op="placeholder")):
            return None, "inputs of the model share memory"
        if self.lowering == "inductor":
            is_exact = False  # it rounds in another order
        with unset_fake_temporarily():
            bound = self.training.tolerance
            found = check(before, after, self.inputs, is_exact=is_exact, bound=bound, names=names)
        return found, "" if found else "float's own results or gradients are not finite on this batch"

    def forward(self, half: fx.GraphModule, inputs: Sequence[Any]) -> Boxed:
        training = self.training
        keys, seen = with_key(half), with_inputs(half, SEEN)
        told = magnitudes(half)
        self.told |= {*told}
        with_results(half, [*told.values()])
        run = lower(half, [*inputs, *keys, *seen], self.lowering, is_backward=False)
        rows = [self.operands[slot] for slot in told]
        run = split(run, len(rows), lambda found: training.histories.remember(rows, found))
        run = supplied(run, seen, lambda: training.histories.seen(self.operands))
        return supplied(run, keys, training.noise.key)

    def backward(self, half: fx.GraphModule, inputs: Sequence[Any]) -> Boxed:
        """What is computed again was told in forward, and is not told twice."""
        histories = self.training.histories
        told = {slot: node for slot, node in magnitudes(half).items() if slot not in self.told}
        with_results(half, [*told.values()])
        rows = [self.operands[slot] for slot in told]
        run = lower(half, inputs, self.lowering, is_backward=True)
        return split(run, len(rows), lambda found: histories.remember(rows, found))


def magnitudes(half: fx.GraphModule) -> dict[int, Node]:
    """The largest magnitudes that a half meets, by the slots of its operands."""
    found = {}
    for pair in half.graph.find_nodes(op="call_function", target=SCALE):
        with half.graph.inserting_after(pair):
            found[pair.args[2]] = called(half.graph, getitem, pair, 1)
    return found


def apart(x: Any) -> Any:
    """A value that a graph may write to; parameters it does not write to."""
    if isinstance(x, nn.Parameter):
        return x.detach()
    return x.detach().clone() if isinstance(x, Tensor) else x


def readable(name: str) -> str:
    """The name of an input as its model's owner knows it.

    L_self_modules_encoder_modules_fc1_parameters_weight_  -->  encoder.fc1.weight
    """
    inner = re.sub(r"^[Ll]_(self|fn|model)_", "", name).strip("_")
    return re.sub(r"_?(modules|parameters|buffers)_", ".", inner).strip(".")
