"""The two graphs of a training step, and what crosses from one to the other.

    forward (*primals)              --> *results, *tensors, *symbolic numbers
    backward(*numbers, *tensors, *tangents) --> *gradients

Tensors cross in one order on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx import Node

from qcompiler.passes.training.graphs import evaluate_all, placeholder

FLAGS = ("saved_tensor_with_no_vc_check",)  # by which torch knows how a tensor that crosses is kept


@dataclass(frozen=True, kw_only=True, eq=False)
class Halves:
    """Forward's first `outputs` results are the user's, or torch's own; passes change both graphs together.

    parameters: names of the inputs that are parameters, or else never change during a step.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    outputs: int
    parameters: frozenset[str]

    @property
    def output(self) -> Node:
        output: Node = self.forward.graph.find_nodes(op="output")[0]
        return output

    @property
    def results(self) -> Sequence[Any]:
        results: Any = self.output.args[0]
        return tuple(results)

    @property
    def crossing(self) -> list[Node]:
        """The tensors that forward hands to backward, in order."""
        return [node for node in self.results[self.outputs :] if is_tensor(node)]

    @property
    def arrivals(self) -> dict[Node, Node]:
        """The values that cross, and the inputs of backward by which they arrive; the first of two."""
        inputs = filter(is_tensor, self.backward.graph.find_nodes(op="placeholder"))
        pairs = [*zip(self.crossing, inputs, strict=False)]
        return dict(reversed(pairs))

    def received(self, value: Node) -> Node:
        """The input of backward by which a value of forward arrives."""
        return self.arrivals[value]

    def hand_over(self, values: Sequence[Node], instead: Node | None = None) -> list[Node]:
        """Let values of forward cross, in the place of another or before all; backward's inputs for them.

        The place of `instead` in backward stays for the caller to erase, once nothing reads it.
        """
        place = self.results.index(instead, self.outputs) if instead else self.outputs
        graph = self.backward.graph
        inputs = graph.find_nodes(op="placeholder")
        arrives = self.received(instead) if instead else next(node for node in inputs if is_tensor(node))
        with graph.inserting_before(arrives):
            given = [placeholder(graph, value, value.name) for value in values]
        flags = {flag: instead.meta[flag] for flag in FLAGS if instead and flag in instead.meta}
        for node in (*values, *given):
            node.meta.update(flags)
        self.replace(place, place + (instead is not None), values)
        return given

    def drop(self, node: Node) -> None:
        """Let a value cross no longer, which backward does not read."""
        place = self.results.index(node, self.outputs)
        self.backward.graph.erase_node(self.received(node))
        self.replace(place, place + 1, ())

    def replace(self, start: int, stop: int, values: Sequence[Node]) -> None:
        """Other results of forward for those from `start` to `stop`; torch describes each of them."""
        results, kinds = list(self.results), list(self.output.meta.get("desc", ()))
        results[start:stop] = values
        self.output.args = (tuple(results),)
        if kinds:
            kinds[start:stop] = [kinds[min(start, len(kinds) - 1)]] * len(values)
            self.output.meta["desc"] = kinds

    def tidy(self) -> None:
        """Check both graphs, from which what nobody reads is gone, and make their code anew."""
        for half in (self.forward, self.backward):
            half.graph.eliminate_dead_code()
            half.graph.lint()
            half.recompile()

    def finish(self) -> None:
        """Tidy up, and compute all values on fake tensors anew.

        Where torch merged equal values, or a pass put one in the place of another, views still tell of the
        storage of the other. In every pass that was a third of compiling a step, so those between only tidy.
        """
        self.tidy()
        evaluate_all(self.forward.graph)
        for value, arrival in self.arrivals.items():
            arrival.meta["val"] = value.meta["val"]
        evaluate_all(self.backward.graph)


def is_tensor(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor)
