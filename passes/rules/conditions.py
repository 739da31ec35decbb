"""Side conditions that several rules share; each returns the sentence why a rewrite must not be made."""

from torch.fx import Node

from qcompiler.ir import Draft, spec
from qcompiler.rewrite import Match
from qcompiler.rewrite.rule import Where


def constant(*names: str) -> Where:
    """The named parameters must be constants of the model (or absent)."""

    def where(match: Match, draft: Draft) -> str | None:
        for name in names:
            bound = match.bindings[name]
            if isinstance(bound, Node) and bound.op != "get_attr":
                return f"'{name}' is computed at run time, not a constant"
        return None

    return where


def rank(name: str, wanted: int) -> Where:
    """A tensor parameter must have this many dimensions."""

    def where(match: Match, draft: Draft) -> str | None:
        found = spec(match.bindings[name])
        have = len(found.shape) if found else None
        return None if have == wanted else f"'{name}' has {have} dimensions, not {wanted}"

    return where


def per_channel(name: str, weight: str, axis: int) -> Where:
    """A constant must be a scalar or vary only along the output channels of `weight`.

    `axis` is the channel axis of the value it is combined with, counted from the end.
    """

    def where(match: Match, draft: Draft) -> str | None:
        tensor, filters = draft.tensor(match.bindings[name]), draft.tensor(match.bindings[weight])
        if tensor is None or filters is None:
            return f"'{name}' or '{weight}' is computed at run time, not a constant"
        channels = filters.shape[0]
        sizes = dict(zip(range(-tensor.dim(), 0), tensor.shape, strict=True))
        varies = [position for position, size in sizes.items() if size != 1]
        if varies not in ([], [axis]) or (varies and sizes[axis] != channels):
            shape = list(tensor.shape)
            return f"'{name}' of shape {shape} varies along more than the {channels} output channels"
        return None

    return where


def both(*conditions: Where) -> Where:
    """All conditions must hold; the first that fails gives the reason."""

    def where(match: Match, draft: Draft) -> str | None:
        return next((reason for check in conditions if (reason := check(match, draft)) is not None), None)

    return where
