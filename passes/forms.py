"""The forms that a target computes in one kernel; what they are is the target's data.

FORMS(recipe, target) = siblings joined >> rotary positions as one op >> attention over a cache as one op
                        >> rotary positions and attention by token >> linears of parts
                                                                                   canonical --> canonical
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.fx import Node

from qcompiler.ir import Graph, label
from qcompiler.ir.spec import module_path
from qcompiler.passes.heads import attend_by_token
from qcompiler.passes.parts import split_parts
from qcompiler.passes.profit import Fusion
from qcompiler.passes.rules.attention import JOINS, attention_for
from qcompiler.passes.rules.rotary import ROTARY
from qcompiler.passes.siblings import families, join_siblings, least_rows, weigh_siblings
from qcompiler.passes.turned import turned_by_token
from qcompiler.recipe import Recipe
from qcompiler.rewrite import Pass, Pipeline, apply_rules
from qcompiler.target import Target


def forms(recipe: Recipe, target: Target) -> Pipeline:
    """The passes that bring a canonical graph into the forms of one target."""
    passes = []
    if target.joins:
        passes.append(named(
            "join siblings", lambda graph: join_siblings(graph, partial(kind, recipe, target), target)
        ))  # fmt: skip
    if target.rotary:
        passes.append(named("recognise rotary positions", lambda graph: apply_rules(graph, ROTARY)))
    if target.attention is not None:
        rules = attention_for(target.attention)
        passes.append(named("recognise attention over a cache", lambda graph: apply_rules(graph, rules)))
        # A pass of its own: only now has what was split no other readers.
        passes.append(named("join what was split", lambda graph: apply_rules(graph, JOINS)))
    if target.by_token:
        passes.append(named("turn by token", turned_by_token))
        passes.append(named("attend by token", attend_by_token))
        passes.append(named("split linears that are read in parts", split_parts))
    return tuple(passes)


def named(name: str, apply: Any) -> Pass:
    return Pass(name=name, apply=apply, requires="canonical", ensures="canonical")


def apart(graph: Graph, recipe: Recipe, target: Target) -> Iterator[Fusion]:
    """Siblings that were not joined, since it does not pay."""
    for siblings in families(graph.nodes, partial(kind, recipe, target)):
        found = weigh_siblings(siblings, target)
        if found is not None and not found.taken:
            yield found


def kind(recipe: Recipe, target: Target, node: Node) -> Any:
    """How a linear will be computed, as far as siblings must agree in it; None where joining does not pay."""
    names = (module_path(node), node.name, label(node))
    layer = recipe.for_layer(*names)
    mode = layer.linear_mode
    most = target.joins.get(mode)
    if mode not in target.joins or (most is not None and least_rows(node) > most):
        return None
    # Siblings of which an override names some stay apart, so that the names in a recipe keep their meaning.
    patterns = tuple(override.pattern for override in recipe.overrides_of(*names))
    return mode, patterns
