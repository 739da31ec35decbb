"""Attention without dropout draws nothing, and needs no state of a random generator.

torch takes it for random by its tag, and where backward computes it again, lets the generator's state cross:

    fw: state, y = run_and_save_rng_state(attention, q, k, v)        y = attention(q, k, v)
    bw: y = run_with_rng_state(state, attention, q, k, v)      -->   y = attention(q, k, v)

What does draw is never chosen to be computed again; where the user's checkpoint does so, the state crosses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._prims.rng_prims import run_and_save_rng_state
from torch.fx import Node

from qcompiler.passes.training.halves import Halves


def is_random(node: Node) -> bool:
    """Whether a second run would draw something else."""
    return draws(node.target, node.args, node.kwargs)


def draws(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call takes numbers of a generator: by its tag, unless its probability of dropout is 0."""
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    names = [argument.name for argument in target._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    given = args[place] if place < len(args) else target._schema.arguments[place].default_value
    return bool(kwargs.get("dropout_p", given))


def forget_generators(halves: Halves) -> None:
    """Call what does not draw without the state of a generator; both graphs are changed, not yet checked."""
    graph = halves.forward.graph
    for node in graph.find_nodes(op="call_function", target=run_and_save_rng_state):
        target, *operands = node.args
        if draws(target, operands, node.kwargs):
            continue  # the user's checkpoint of something with dropout: both runs have to draw the same
        state, value = sorted(node.users, key=lambda user: user.args[1])
        (again,) = halves.received(state).users
        unwrap(again, target, again.args[2:], again.kwargs)
        halves.drop(state)
        unwrap(value, target, operands, node.kwargs)
        for wrapper in (state, node):
            graph.erase_node(wrapper)


def unwrap(value: Node, target: Any, operands: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Compute a value by the operator alone."""
    with value.graph.inserting_before(value):
        alone = value.graph.call_function(target, tuple(operands), dict(options))
    alone.meta.update(value.meta)
    value.replace_all_uses_with(alone)
    value.graph.erase_node(value)
