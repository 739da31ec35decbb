"""From a user's model to a functional ATen graph.

    nn.Module | fx.GraphModule  --torch.export-->  ExportedProgram  --functionalise-->  Graph
    file.pt2                    --torch.export.load--^

The first dimension of every input that has the example's batch size stays symbolic where the model allows it,
and so do the axes that the caller names.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError, TraceError
from qcompiler.ir.axes import Axes, has_symbolic_batch
from qcompiler.ir.export import export_module
from qcompiler.ir.failure import explain_failure
from qcompiler.ir.graph import Graph, Note
from qcompiler.ir.lift import lift
from qcompiler.ir.program import load_program
from qcompiler.ir.quiet import quiet

Model = nn.Module | ExportedProgram | str | Path


def trace(
    model: Model,
    example_inputs: Any = None,
    *,
    dynamic: Axes | None = None,
    floats: Collection[torch.dtype] = (torch.float32,),
) -> Graph:
    """Trace a model into a graph of stage "traced".

    `example_inputs` is a tensor, a tuple of arguments, or a dict of keyword arguments; an
    ExportedProgram or a `.pt2` file brings its own. `dynamic` names further axes of an nn.Module's arguments
    that may have any size in a call, {"tokens": (1,)}; the example must have at least 2 there. `floats`
    are the types that parameters may have.

    Raises TraceError naming the user's file and line, InputError for inputs that the model cannot take.
    """
    program, batched = exported(model, example_inputs, dynamic or {})
    result = program.call_spec.out_spec
    try:
        with quiet(), leaves_only(program):
            program = program.run_decompositions({})
    except Exception as error:
        raise explain_failure(model, error) from error
    if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
        names = list(program.graph_signature.buffers_to_mutate.values()) + list(
            program.graph_signature.user_inputs_to_mutate.values()
        )
        raise TraceError(
            f"the model writes to {', '.join(map(repr, names[:3]))} while it runs",
            why="a compiled graph has no state",
            fix="call model.eval(), or return the new value instead of writing it in place",
        )
    refuse_other_precisions(program, floats)
    graph = lift(program, result)
    if not batched:
        note = Note(
            stage="traced",
            rule="dynamic-batch",
            node="input",
            outcome="refused",
            reason="the model fixes its batch size, so only the example's shapes run",
        )
        graph = graph.noting([note])
    return graph


def exported(model: Model, example_inputs: Any, axes: Axes) -> tuple[ExportedProgram, bool]:
    if axes and not isinstance(model, nn.Module):
        raise InputError(
            "an exported program cannot get dynamic axes",
            why="its shapes were settled when it was exported",
            fix="mark them in torch.export.export, or pass the module",
        )
    match model:
        case ExportedProgram():
            return model, has_symbolic_batch(model)
        case str() | Path():
            program = load_program(Path(model))
            return program, has_symbolic_batch(program)
        case nn.Module():
            return export_module(model, example_inputs, axes)
    raise InputError(
        f"cannot trace a {type(model).__name__}",
        why="a model is an nn.Module, a torch.fx.GraphModule, an ExportedProgram or a .pt2 file",
        fix="pass one of these",
    )


@contextmanager
def leaves_only(program: ExportedProgram) -> Iterator[None]:
    """Let a program return a plain tuple of leaves while it is traced once more.

    The container of its result would be rebuilt in that trace, and some compute on being built (a cache of
    keys and values joins them to an empty one).
    """
    signature = program.module_call_graph[0].signature
    assert signature is not None
    result = signature.out_spec
    signature.out_spec = pytree.tree_structure(tuple(range(result.num_leaves)))
    try:
        yield
    finally:
        signature.out_spec = result


def refuse_other_precisions(program: ExportedProgram, floats: Collection[torch.dtype]) -> None:
    """Halves only where the target computes in them; a buffer in float64 may be some table."""
    half, learned = {torch.float16, torch.bfloat16} - set(floats), program.graph_signature.parameters
    found = next(
        (
            name
            for name, tensor in program.state_dict.items()
            if tensor.dtype in half or (tensor.dtype == torch.float64 and name in learned)
        ),
        None,
    )
    if found is not None:
        raise InputError(
            f"the model computes in {str(program.state_dict[found].dtype).removeprefix('torch.')}",
            node=f"parameter '{found}'",
            why="quantization starts from float32",
            fix="call model.float() first",
        )
