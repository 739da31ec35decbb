"""How long products take in float and in few bits: each alone, as it stands in the graph, where it will run.

    y  = op(a, b, ...)               seconds: floating
    y' = replaced(op)(a, b, ...)     seconds: few         operands become codes within

Both forms are timed in turn and on one thread, once for each distinct shape, layout and format in a process,
whatever the number of threads that train. What is timed are the very nodes that `products.replace` makes.
Numbers are normal: time does not depend on them.
"""

import time
from collections.abc import Sequence
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node

from qcompiler.numerics.philox import noise_key
from qcompiler.passes.training.convolutions import result
from qcompiler.passes.training.joint import family
from qcompiler.passes.training.products import Choice, replace
from qcompiler.passes.training.speed import MARGIN, Pace, as_it_runs, clock_on
from qcompiler.progress import Tell, silent
from qcompiler.tune.measure import Timing, interleave

ROUNDS = 3
MORE = 9  # where the first rounds do not agree on which side of the margin a product is
SLICE = 0.005  # seconds that a form runs in a round, at least
PATIENCE = 1.0  # seconds before anybody is told that it takes time

KNOWN: dict[str, Pace] = {}
"""What this process has measured, by signature."""


def paces(choices: Sequence[Choice], *, tell: Tell = silent) -> list[Pace]:
    """The pace of each product in the formats chosen for it; all its shapes are known."""
    signatures = [signature(choice) for choice in choices]
    new = {key: each for key, each in zip(signatures, choices, strict=True) if key not in KNOWN}
    start = time.monotonic()
    for done, (key, choice) in enumerate(new.items()):
        if time.monotonic() - start > PATIENCE:
            tell("timing products beside float", done, len(new))
        KNOWN[key] = measured(choice)
    return [KNOWN[key] for key in signatures]


def signature(choice: Choice) -> str:
    """All that the time of a product depends on: equal for products of which one stands for all."""

    def told(arg: Node) -> Any:
        value = arg.meta["val"]
        return f"{value.dtype}{tuple(value.shape)}{value.stride()}@{value.device}"

    node = choice.matmul.node
    given = fx.node.map_arg(node.args, told)
    form = (choice.matmul.role, choice.is_flipped, choice.product)
    return f"{node.target} {given} {form}"


def measured(choice: Choice) -> Pace:
    floating, few = alone(choice), alone(choice, in_few_bits=True)
    values = [read.meta["val"] for read in choice.matmul.node.all_input_nodes]
    with as_it_runs(), clock_on(values[0].device) as clock:
        inputs = [normal(value) for value in values]
        forms = {"floating": lambda: floating.forward(*inputs), "few": lambda: few.forward(*inputs)}
        timing = interleave(forms, rounds=ROUNDS, clock=clock, slice=SLICE)
        if is_contested(timing):
            timing = interleave(forms, rounds=MORE, clock=clock, slice=SLICE)
    return Pace(floating=timing.median("floating"), few=timing.median("few"))


def is_contested(timing: Timing) -> bool:
    """Whether rounds disagree on which side of the margin the product is."""
    return len({ratio >= 1 + MARGIN for ratio in timing.ratios("floating", "few")}) > 1


def alone(choice: Choice, *, in_few_bits: bool = False) -> fx.GraphModule:
    """A graph of nothing but one product; its inputs come in the order in which the node reads them."""
    node, graph = choice.matmul.node, fx.Graph()
    copies: dict[Node, Node] = {}
    for read in node.all_input_nodes:
        copies[read] = graph.placeholder(read.name)
        copies[read].meta["val"] = read.meta["val"]
    copy = graph.node_copy(node, copies.__getitem__)
    taken = result(node) if family(node) == "convolution" else node  # a gradient is taken from a tuple
    graph.output(copy if taken is node else graph.node_copy(taken, lambda _: copy))
    if in_few_bits:
        replace(graph, changed(choice, matmul=changed(choice.matmul, node=copy)))
        graph.eliminate_dead_code()
    return fx.GraphModule(keys_held(graph), graph)


def keys_held(graph: fx.Graph) -> dict[str, Tensor]:
    """Let a graph that runs by itself hold the key of its draws; what it holds, by name."""
    held = {}
    for node in graph.find_nodes(op="call_function", target=torch.ops.qcompiler.noise_key.default):
        with unset_fake_temporarily():
            held["key"] = noise_key(0).to(node.args[0])
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr("key"))
        graph.erase_node(node)
    return held


def normal(like: Tensor) -> Tensor:
    """Normal numbers of a shape, layout and type; whoever trains draws as if nothing had been measured."""
    own = torch.Generator(like.device).manual_seed(0)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    flat = torch.randn(reach, generator=own, device=like.device).to(like.dtype)
    return flat.as_strided(like.shape, like.stride())
