"""Attention without dropout draws nothing, and needs no state of a random generator.

torch takes it for random by its tag, and where backward computes it again, lets the generator's state cross:

    fw: state, y = run_and_save_rng_state(attention, q, k, v)        y = attention(q, k, v)
    bw: y = run_with_rng_state(state, attention, q, k, v)      -->   y = attention(q, k, v)

What does draw is never computed again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch._prims.rng_prims import run_and_save_rng_state, run_with_rng_state
from torch.fx import Node

from qcompiler.passes.training.halves import Halves


def is_random(node: Node) -> bool:
    """Whether a second run would draw something else."""
    target: Any = node.target
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    return bool(argument(node, "dropout_p", 1.0))


def argument(node: Node, name: str, otherwise: Any) -> Any:
    """The argument of that name in a call; what it is where the operator has none."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    for place, declared in enumerate(schema):
        if declared.name == name:
            given = node.args[place] if place < len(node.args) else declared.default_value
            return node.kwargs.get(name, given)
    return otherwise


def forget_generators(halves: Halves) -> None:
    """Call what torch wrapped without the state of a generator; both graphs are changed, not yet checked."""
    for node in halves.forward.graph.find_nodes(op="call_function", target=run_and_save_rng_state):
        state, value = sorted(node.users, key=lambda user: user.args[1])
        (again,) = halves.received(state).users
        operands = again.args[2:]
        unwrap(again, again, operands)
        halves.drop(state)
        unwrap(value, node, node.args[1:])
        for wrapper in (state, node):
            halves.forward.graph.erase_node(wrapper)


def unwrap(value: Node, wrapper: Node, operands: Sequence[Any]) -> None:
    """Compute a value by the operator alone that a wrapper calls."""
    with value.graph.inserting_before(value):
        alone = value.graph.call_function(wrapped(wrapper), tuple(operands), dict(wrapper.kwargs))
    alone.meta.update(value.meta)
    value.replace_all_uses_with(alone)
    value.graph.erase_node(value)


def wrapped(wrapper: Node) -> Any:
    """The operator that a wrapper calls: its first argument, or the one behind the state."""
    return wrapper.args[wrapper.target is run_with_rng_state]
