"""Running passes: each maps Graph -> Graph, requires a stage, ensures a stage, and can be verified."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir import Graph, check_stage, evaluate
from qcompiler.numerics import sqnr


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A named step from one stage to the next.

    `preserves` says what a sample run must show before and after: the SQNR in dB that rounding alone
    explains in float32, or None where the step is meant to change values (quantization does).
    """

    name: str
    apply: Callable[[Graph], Graph]
    requires: str
    ensures: str
    preserves: float | None = 80.0


Pipeline = Sequence[Pass]


def run(pipeline: Pipeline, graph: Graph, *, verify: Sequence[Any] | None = None) -> Graph:
    """Apply the passes in order, checking the stage grammar between them.

    `verify` holds flat sample inputs: every pass is then run before and after on them, and one that
    changes the result by more than it declares raises GraphError naming it.
    """
    for step in pipeline:
        if graph.stage != step.requires:
            raise GraphError(
                f"pass '{step.name}' needs a graph of stage '{step.requires}', got '{graph.stage}'",
                fix="order the pipeline by stages",
            )
        after = replace(step.apply(graph), stage=step.ensures)
        check_stage(after)
        if verify is not None and step.preserves is not None:
            check_preserved(step, graph, after, verify)
        graph = after
    return graph


def check_preserved(step: Pass, before: Graph, after: Graph, samples: Sequence[Any]) -> None:
    """Compare a pass's input and output graph on the same inputs."""
    pairs = zip(evaluate(before, samples), evaluate(after, samples), strict=True)
    for index, (old, new) in enumerate(pairs):
        problem = difference(old, new, step.preserves or 0.0)
        if problem:
            raise GraphError(
                f"pass '{step.name}' changed output {index}",
                why=problem,
                fix="one of the rules it applied is wrong here; graph.notes lists them",
            )


def difference(old: Any, new: Any, promised: float) -> str | None:
    """The sentence how two results differ by more than rounding, or None.

    Integers are compared in shape only: where two scores are equal, rounding alone may move an argmax.
    """
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return None if type(old) is type(new) and old == new else f"it was {old} and is {new}"
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return f"it was {old.dtype} {list(old.shape)} and is {new.dtype} {list(new.shape)}"
    if not old.is_floating_point():
        return None
    finite = old.isfinite() & new.isfinite()
    if not torch.allclose(old[~finite], new[~finite], equal_nan=True):
        return "other elements are infinite or NaN"
    agreement = sqnr(old[finite], new[finite])
    return None if agreement >= promised else f"they agree to {agreement:.1f} dB, it promises {promised} dB"
