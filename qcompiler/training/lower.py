"""From a rewritten half of a training step to a function that runs: through Inductor, or op by op.

Both take a list that they empty, so that a value dies with its last use and not with the call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, detect_fake_mode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import _BoxedCodeGen

from qcompiler.errors import RecipeError

Lowering = Literal["eager", "inductor"]
Boxed = Callable[[list[Any]], Sequence[Any]]


def find_lowering(name: str, inputs: Sequence[Any]) -> Lowering:
    """The lowering that a name means for these inputs.

    "auto" is Inductor on a GPU. On a CPU it is op by op: Inductor's step takes as long there, and it compiles
    for half a minute where the other takes two seconds.
    """
    if name == "auto":
        on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in inputs)
        return "inductor" if on_gpu else "eager"
    if name in ("eager", "inductor"):
        return cast(Lowering, name)
    raise RecipeError(f"there is no lowering '{name}'", fix="use 'auto', 'inductor' or 'eager'")


def lower(half: fx.GraphModule, inputs: Sequence[Any], lowering: Lowering, *, is_backward: bool) -> Boxed:
    return by_inductor(half, inputs, is_backward=is_backward) if lowering == "inductor" else op_by_op(half)


def op_by_op(half: fx.GraphModule) -> Boxed:
    """torch's own kernels, in the order of the graph.

    Below autograd, which has differentiated the graph already: for an operator of ours it is a detour through
    Python whose code is far behind every product of matrices, 0.1 ms a call.
    """
    half.graph.set_codegen(_BoxedCodeGen())
    half.recompile()

    def run(inputs: list[Any]) -> Sequence[Any]:
        with torch._C._AutoDispatchBelowAutograd():
            results: Sequence[Any] = half.forward(inputs)
        return results

    return boxed(run)


def by_inductor(half: fx.GraphModule, inputs: Sequence[Any], *, is_backward: bool) -> Boxed:
    """Fused by torch's Inductor; what it has no kernel of its own for it decomposes first."""
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    fake = detect_fake_mode(inputs)
    assert fake is not None
    with torch.no_grad(), patch.object(fake, "allow_non_fake_inputs", True):  # graphs hold constants
        decomposed = make_fx(half, decomposition_table=select_decomp_table())(*inputs)
    run: Any = compile_fx_inner(decomposed, inputs, is_backward=is_backward)
    return cast(Boxed, run)


def with_key(half: fx.GraphModule) -> list[Tensor]:
    """Turn the key of the draws into the last inputs of a half, one for each device; their fake values."""
    return with_inputs(half, torch.ops.qcompiler.noise_key.default)


def with_inputs(half: fx.GraphModule, target: Any) -> list[Tensor]:
    """Turn nodes that stand for something from outside into the last inputs of a half; their fake values."""
    nodes = half.graph.find_nodes(op="call_function", target=target)
    for node in nodes:
        last = half.graph.find_nodes(op="placeholder")[-1]
        with half.graph.inserting_after(last):
            given = half.graph.placeholder(f"value_of_{node.name}")
        given.meta.update(node.meta)
        node.replace_all_uses_with(given)
        half.graph.erase_node(node)
    half.recompile()
    return [node.meta["val"] for node in nodes]


def supplied(run: Boxed, places: Sequence[Tensor], value: Callable[[], Tensor]) -> Boxed:
    """Give a half a value of this step, on the devices where it is wanted."""
    if not places:
        return run

    def with_this(inputs: list[Any]) -> Sequence[Any]:
        given = value()
        inputs.extend(given.to(device) for device in devices)
        return run(inputs)

    devices = [fake.device for fake in places]
    return boxed(with_this)


def with_results(half: fx.GraphModule, values: Sequence[Node]) -> None:
    """Let a half return values behind its own results."""
    if not values:
        return
    (output,) = half.graph.find_nodes(op="output")
    output.args = ((*output.args[0], *values),)
    half.recompile()


def split(run: Boxed, count: int, take: Callable[[Sequence[Tensor]], None]) -> Boxed:
    """Take the last results of a half that was just lowered, which nobody else knows of.

    Not AOTAutograd either: Inductor told it their strides with those of what crosses, and it would take them
    for the strides of tangents.
    """
    if not count:
        return run
    context = TracingContext.try_get()
    if context is not None and context.output_strides:
        del context.output_strides[-count:]

    def without_those(inputs: list[Any]) -> Sequence[Any]:
        results = run(inputs)
        take(results[-count:])
        return results[:-count]

    return boxed(without_those)


def boxed(run: Boxed) -> Boxed:
    """Mark a function as one that takes a list and empties it, as AOTAutograd wants to know."""
    run._boxed_call = True  # type: ignore[attr-defined]
    return run
