"""A pattern is an ordinary function on tensors, traced once; matching binds its parameters in a graph.

    def before(x: Tensor, w: Tensor, eps: float): return aten.mul.Tensor(x, w) ...

Parameters annotated `Tensor` match any value, `Tensor | None` also an absent one, all others match a literal.
Commutative ops are tried in both orders, and the names of one op (view, reshape) match each other, so no rule
is written twice. A function may return several values; all must be reached from the first, its root.
"""

import inspect
import math
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_type_hints

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.ir import arguments, normalize_arguments
from qcompiler.ir.graph import operator_of
from qcompiler.rewrite.traits import Trait, has

aten = torch.ops.aten
Bindings = dict[str, Any]

# Python operators in rule functions mean these ATen ops.
OPERATORS = {
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.truediv: aten.div.Tensor,
    operator.neg: aten.neg.default,
}


class RuleTracer(fx.Tracer):
    """Symbolic tracing that writes Python operators as ATen ops and arguments in normal form."""

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Node:
        node = super().create_node(kind, OPERATORS.get(target, target), args, kwargs, *rest, **named)
        if node.op == "call_function":
            normalize_arguments(node)
        return node


@dataclass(frozen=True)
class Pattern:
    """The traced left side of a rule."""

    function: Callable[..., Any]

    @cached_property
    def graph(self) -> fx.Graph:
        return RuleTracer().trace(self.function)

    @cached_property
    def results(self) -> tuple[Node, ...]:
        output = next(node for node in self.graph.nodes if node.op == "output")
        returned = output.args[0]
        return tuple(returned) if isinstance(returned, list | tuple) else (returned,)

    @property
    def root(self) -> Node:
        return self.results[0]

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Parameter name -> "tensor", "optional" or "literal"."""
        hints = get_type_hints(self.function)
        names = inspect.signature(self.function).parameters
        return {name: KINDS.get(hints[name], "literal") for name in names}

    def match(self, node: Node, shared: Collection[Any] = ()) -> "Match | None":
        """The first way in which `node` is the root of this pattern, best one that nobody else reads.

        `shared` are the ops inside whose results may have other readers.
        """
        if not same_op(node, self.root):
            return None
        found = [
            self.matched(bindings, covered, shared)
            for bindings, covered in self._unify(self.root, node, {}, {})
        ]
        return min(found, key=lambda match: match.tapped is not None, default=None)

    def matched(self, bindings: Bindings, covered: dict[Node, Node], shared: Collection[Any]) -> "Match":
        results = tuple(covered[result] for result in self.results)
        return Match(
            results=results, bindings=bindings, covered=tuple(covered.values()),
            tapped=tapped(covered, results, shared),
        )  # fmt: skip

    def _unify(
        self, pattern: Any, found: Any, bindings: Bindings, covered: dict[Node, Node]
    ) -> Iterator[tuple[Bindings, dict[Node, Node]]]:
        if isinstance(pattern, Node) and pattern.op == "placeholder":
            yield from self._bind(str(pattern.target), found, bindings, covered)
        elif isinstance(pattern, Node):
            if pattern in covered:
                if covered[pattern] is found:
                    yield bindings, covered
            elif isinstance(found, Node) and same_op(found, pattern):
                for mine, theirs in orders(pattern, found):
                    yield from self._unify_all(mine, theirs, bindings, {**covered, pattern: found})
        elif isinstance(pattern, list | tuple):
            if isinstance(found, list | tuple) and len(found) == len(pattern):
                yield from self._unify_all(list(pattern), list(found), bindings, covered)
        elif equal_literals(pattern, found):
            yield bindings, covered

    def _unify_all(
        self, mine: list[Any], theirs: list[Any], bindings: Bindings, covered: dict[Node, Node]
    ) -> Iterator[tuple[Bindings, dict[Node, Node]]]:
        if not mine:
            yield bindings, covered
            return
        for head_bindings, head_covered in self._unify(mine[0], theirs[0], bindings, covered):
            yield from self._unify_all(mine[1:], theirs[1:], head_bindings, head_covered)

    def _bind(
        self, name: str, found: Any, bindings: Bindings, covered: dict[Node, Node]
    ) -> Iterator[tuple[Bindings, dict[Node, Node]]]:
        kind = self.kinds[name]
        fits = {
            "tensor": isinstance(found, Node),
            "optional": found is None or isinstance(found, Node),
            "literal": not isinstance(found, Node),
        }[kind]
        if fits and (name not in bindings or same(bindings[name], found)):
            yield {**bindings, name: found}, covered


KINDS: dict[Any, str] = {Tensor: "tensor", Tensor | None: "optional"}


@dataclass(frozen=True, kw_only=True)
class Match:
    """A place where a pattern fits: its results, what each parameter stands for, and the nodes it covers.

    `tapped` is a covered node that something outside reads, so that it must stay.
    """

    results: tuple[Node, ...]
    bindings: Bindings
    covered: tuple[Node, ...]
    tapped: Node | None = None

    @property
    def root(self) -> Node:
        return self.results[0]


def same_op(found: Node, pattern: Node) -> bool:
    """Whether two calls compute the same function, whatever strides its name speaks of."""
    return found.op == "call_function" and operator_of(found) == operator_of(pattern)


def orders(pattern: Node, found: Node) -> Iterator[tuple[list[Any], list[Any]]]:
    """The ways to pair the arguments of two calls of one op."""
    mine = arguments(pattern)
    names = list(mine)
    theirs = dict(zip(names, arguments(found).values(), strict=True))
    yield [mine[name] for name in names], [theirs[name] for name in names]
    if has(found, Trait.COMMUTES):
        first, second, *rest = names
        swapped = [theirs[second], theirs[first], *(theirs[name] for name in rest)]
        yield [mine[name] for name in names], swapped


def tapped(covered: dict[Node, Node], results: Sequence[Node], shared: Collection[Any]) -> Node | None:
    """The first value inside the match that is read from outside it."""
    inside = set(covered.values())
    private = (node for node in covered.values() if node not in results and node.target not in shared)
    return next((node for node in private if set(node.users) - inside), None)


def same(first: Any, second: Any) -> bool:
    return first is second if isinstance(first, Node) else equal_literals(first, second)


def equal_literals(first: Any, second: Any) -> bool:
    if isinstance(first, float) or isinstance(second, float):
        numbers = isinstance(first, int | float) and isinstance(second, int | float)
        return numbers and math.isclose(first, second, rel_tol=1e-6)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(equal_literals, first, second))
    return type(first) is type(second) and bool(first == second)
