"""Whether a plan does what it promises: a step is run on one batch, beside float, before it is used.

results     equal to the last bit where nothing but storage is in few bits
values      each comes back within one step of its group, masks and indices as they were
gradients   finite, and within a stated distance of float's
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.errors import PlanError
from qcompiler.numerics.groupwise import GROUP
from qcompiler.numerics.philox import noise_key
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.run import (
    apart_from_draws,
    backward,
    cotangents,
    distance,
    forward,
    real_parts,
)
from qcompiler.passes.training.store import RECALLS

ops = torch.ops.qcompiler
STORES = (ops.store.default, ops.store_mask.default, ops.narrow.default, ops.store_taps.default)
# A recalled value is q s + m in float32, which rounds twice, and then once more to its type.
SLACK = 4


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One step as planned, against float.

    results, gradient: relative distances over all results, and over all gradients together. parameters: the
    gradient of each input that has one, by its name.
    """

    results: float
    gradient: float
    parameters: Mapping[str, "Gradient"]


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The distance of one gradient from float's, relative to itself, and its length as a share of all."""

    distance: float
    share: float


def check(
    before: Halves,
    after: Halves,
    inputs: Sequence[Any],
    *,
    is_exact: bool,
    bound: float,
    names: Mapping[str, str],
    seed: int = 0,
) -> Checked | None:
    """Run a step as planned, and in float. Raises PlanError with the name of the tensor that is at fault.

    before: the same model with products in float and nothing stored. is_exact: whether results have to be
    equal. bound: the largest distance of the gradient. names: of inputs, as the user knows them. None where
    float's own results or gradients are not finite, so that nothing can be said.
    """
    check_ordinals(after)
    key = noise_key(seed)
    with apart_from_draws(inputs):
        torch.manual_seed(seed)  # random operators draw the same in both
        exact = forward(before, inputs, key)
        torch.manual_seed(seed)
        watching = Watching()
        planned = forward(after, inputs, key, watching.forward)
    tangents = cotangents(before, seed)
    wanted = backward(before, exact.handed, tangents, key)
    found = backward(after, planned.handed, tangents, key, watching.backward)
    if not is_finite([*exact.results, *wanted]):
        return None
    if is_exact and distance(planned.results, exact.results) != 0:
        raise PlanError("forward does not give what float gives", why="storing values changed it")
    inputs_ = [node.name for node in before.forward.graph.find_nodes(op="placeholder")]
    length = sum(float(real_parts(b).square().sum()) for b in wanted if isinstance(b, Tensor)) ** 0.5
    parameters = {
        names.get(name, name): Gradient(
            distance=distance([a], [b]), share=float(real_parts(b).norm()) / length if length else 0.0
        )
        for name, a, b in zip(inputs_, found, wanted, strict=False)
        if isinstance(b, Tensor)
    }
    for name, apart in parameters.items():
        if not apart.distance < float("inf") and apart.share:
            raise PlanError("a gradient is not finite where float's is", node=name)
    gradient = distance(found, wanted)
    if gradient > bound:
        worst = max(parameters, key=lambda name: parameters[name].distance * parameters[name].share)
        raise PlanError(
            f"gradients are {gradient:.3f} from float's, relative, and may be {bound:g}",
            node=worst,
            fix="use more bits, or say a larger tolerance",
        )
    return Checked(results=distance(planned.results, exact.results), gradient=gradient, parameters=parameters)


def is_finite(values: Sequence[Any]) -> bool:
    return all(bool(x.isfinite().all()) for x in values if isinstance(x, Tensor))


def check_ordinals(halves: Halves) -> None:
    """No two values may share their draws: the noise of one would be that of the other."""
    seen: dict[Any, str] = {}
    for node in halves.forward.graph.find_nodes(op="call_function", target=ops.store.default):
        name, ordinal = node.args[0].name, node.args[2]
        if ordinal in seen:
            raise PlanError(f"two values draw the same noise, {seen[ordinal]} and", node=name)
        seen[ordinal] = name


class Watching:
    """Compares what is recalled with what was stored, value by value."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[Tensor, Any]] = {}  # by name: the value, and its parts

    def forward(self, node: Node, args: Sequence[Any], value: Any) -> None:
        if node.target in STORES:
            self.stored[str(node.args[0])] = (args[0], value)

    def backward(self, node: Node, args: Sequence[Any], value: Any) -> None:
        if (name := node.meta.get(RECALLS)) is not None:
            why = fault(*self.stored[name], value)
            if why is not None:
                raise PlanError("a value does not come back as it was stored", node=name, why=why)


def fault(x: Tensor, parts: Any, recalled: Tensor) -> str | None:
    """What is wrong with a recalled value; None where nothing is."""
    if (recalled.shape, recalled.stride(), recalled.dtype) != (x.shape, x.stride(), x.dtype):
        return f"it was {x.dtype} {tuple(x.shape)} and is {recalled.dtype} {tuple(recalled.shape)}"
    if not x.dtype.is_floating_point:
        return None if torch.equal(recalled, x) else "it is not equal"
    if not x.isfinite().all():
        return None  # overflow stays visible by itself
    flat, back = x.reshape(-1).double(), recalled.reshape(-1).double()
    step = parts[1][:, 1].double().repeat_interleave(GROUP)[: flat.numel()]
    slack = SLACK * torch.finfo(x.dtype).eps * flat.abs().clamp(min=step)
    off = (back - flat).abs() - step
    return None if bool((off <= slack).all()) else "it is further off than one step of its group"
