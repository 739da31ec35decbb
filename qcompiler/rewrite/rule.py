"""A rule is two runnable functions and a law; pattern, rewrite, refusal and test come from it.

before(args) --> after(args)      where the side condition holds      equal as the law says
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.ir import Draft, Graph, label, spec
from qcompiler.rewrite.pattern import OPERATORS, Match, Pattern


@dataclass(frozen=True, kw_only=True)
class Law:
    """How equal the two sides are: `ulps` units in the last place of the largest result, in float64.

    0 means bit for bit. Sides that are equal in real arithmetic differ only by rounding, which a few
    ulps of float64 per accumulated term cover and a wrong formula does not.
    """

    ulps: int

    def __str__(self) -> str:
        return "exact" if self.ulps == 0 else f"within {self.ulps} ulp"

    def broken_by(self, before: Tensor, after: Tensor) -> str | None:
        """The sentence that says how two results break the law, or None."""
        if before.shape != after.shape:
            return f"shapes differ: {list(before.shape)} against {list(after.shape)}"
        if before.dtype != after.dtype:
            return f"types differ: {before.dtype} against {after.dtype}"
        unit = torch.finfo(before.dtype).eps if before.dtype.is_floating_point else 1
        largest = before.abs().max().item() if before.numel() else 0.0
        distance = (before.double() - after.double()).abs().max().item() if before.numel() else 0.0
        allowed = self.ulps * unit * max(largest, 1e-30)
        return None if distance <= allowed else f"they differ by {distance:.3g}, allowed is {allowed:.3g}"


EXACT = Law(ulps=0)


def reals(ulps: int) -> Law:
    """Equal in real arithmetic; float64 rounding stays within `ulps`."""
    return Law(ulps=ulps)


Where = Callable[[Match, Draft], str | None]
Domain = Callable[[torch.Generator], Iterable[Sequence[Any]]]


def always(match: Match, draft: Draft) -> str | None:
    """No side condition."""
    return None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`before --> after`.

    Invariants: both functions take the same parameters; on every tuple from `domain` their results obey
    `law`; `where` returns None to allow a rewrite, or the sentence why it must not be made. `constants`
    are parameters that stand for constants of the model: where they do not, the place is not an instance
    of `before`, and nothing is refused. Both may return several values, the last computed first. `shared`
    are ops of `before` that may have other readers, who keep them: those that cost next to nothing.
    """

    name: str
    before: Callable[..., Any]
    after: Callable[..., Any]
    domain: Domain
    law: Law = EXACT
    where: Where = always
    constants: tuple[str, ...] = ()
    shared: tuple[Any, ...] = ()

    @cached_property
    def pattern(self) -> Pattern:
        return Pattern(self.before)

    def check(self, generator: torch.Generator) -> str | None:
        """Try the law on random inputs from the domain; the sentence how it breaks, or None."""
        for sample in self.domain(generator):
            for before, after in zip(
                several(self.before(*sample)), several(self.after(*sample)), strict=True
            ):
                problem = self.law.broken_by(before, after)
                if problem:
                    return f"rule '{self.name}' is not {self.law}: {problem}"
        return None


def several(returned: Any) -> tuple[Any, ...]:
    """What a side of a rule returns, as a tuple."""
    return tuple(returned) if isinstance(returned, list | tuple) else (returned,)


class Placed(fx.Proxy):
    """A value on the right side of a rule; unlike a bare proxy it knows the shape it has in this graph."""

    @property
    def shape(self) -> tuple[Any, ...]:
        found = spec(self.node)
        assert found is not None, f"{self.node} is not a tensor"
        return found.shape


class Inserter(fx.proxy.GraphAppendingTracer):
    """Traces the right side of a rule straight into a draft, inferring specs on the way."""

    def __init__(self, draft: Draft, match: Match) -> None:
        super().__init__(draft.fx)
        self.draft = draft
        self.match = match
        self.made: list[Node] = []

    def proxy(self, node: Node) -> fx.Proxy:
        return Placed(node, self)

    def given(self, bound: Any) -> Any:
        return self.proxy(bound) if isinstance(bound, Node) else bound

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Node:
        target = OPERATORS.get(target, target)
        same_op = (node for node in self.match.covered if node.target == target)
        origin = next(same_op, self.match.root)
        node = self.draft.call(target, *args, before=self.match.root, origin=origin, **kwargs)
        self.made.append(node)
        return node


def apply_rules(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """Rewrite until no rule fires; every firing and every refusal becomes a note."""
    draft = Draft(graph)
    refused: set[tuple[str, Node]] = set()
    changed = True
    while changed:
        changed = False
        for node in draft.nodes:
            for rule in rules:
                changed |= fire(rule, node, draft, refused)
    return draft.finish()


def fire(rule: Rule, node: Node, draft: Draft, refused: set[tuple[str, Node]]) -> bool:
    """Try one rule at one node; whether the graph changed."""
    if not is_live(node) or (match := rule.pattern.match(node, rule.shared)) is None:
        return False
    if any(draft.tensor(match.bindings[name]) is None for name in rule.constants):
        return False
    inserter = Inserter(draft, match)
    reason = another_reader(match) or too_early(match) or rule.where(match, draft)
    if reason is None:
        made = rule.after(**{name: inserter.given(bound) for name, bound in match.bindings.items()})
        results = [proxy.node for proxy in several(made)]
        reason = next(filter(None, map(changed_type, match.results, results)), None)
    if reason is not None:
        if (rule.name, node) not in refused:
            draft.note(rule.name, label(node), "refused", reason)
        refused.add((rule.name, node))
        for unwanted in reversed(inserter.made):
            draft.fx.erase_node(unwanted)
        return False
    draft.note(rule.name, label(node), "applied")
    for old, new in zip(match.results, results, strict=True):
        draft.replace(old, new)
    for dead in reversed(match.covered):
        remove_if_unread(dead, draft)
    remove_if_unread(node, draft)
    return True


def another_reader(match: Match) -> str | None:
    return f"'{label(match.tapped)}' has another reader" if match.tapped is not None else None


def too_early(match: Match) -> str | None:
    """The new values stand where the root was; nobody may want one before that."""
    early = (
        reader
        for result in match.results[1:]
        for reader in result.users
        if reader not in match.covered and reader < match.root
    )
    reader = next(early, None)
    return f"'{label(reader)}' reads a result of it earlier" if reader is not None else None


def changed_type(before: Node, after: Node) -> str | None:
    """Laws speak of one dtype and of operands that fit; a graph may mix them."""
    old, new = spec(before), spec(after)
    same = old and new and old.dtype == new.dtype and len(old.shape) == len(new.shape)
    return None if same else f"the result would be {new} instead of {old}"


def is_live(node: Node) -> bool:
    return not getattr(node, "_erased", False)


def remove_if_unread(node: Node, draft: Draft) -> None:
    if is_live(node) and not node.users and node.op == "call_function":
        draft.fx.erase_node(node)
