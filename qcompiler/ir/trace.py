"""From a user's model to a functional ATen graph.

    nn.Module | fx.GraphModule  --torch.export-->  ExportedProgram  --functionalise-->  Graph
    file.pt2                    --torch.export.load--^

The first dimension of every input that has the example's batch size stays symbolic where the model allows it,
and so do the axes that the caller names.
"""

import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError, TraceError
from qcompiler.ir.archive import safe_copy
from qcompiler.ir.edit import normalize_arguments
from qcompiler.ir.failure import explain_failure, first_line, is_users_control_flow, user_position
from qcompiler.ir.graph import Graph, Note, Signature
from qcompiler.ir.spec import spec

Model = nn.Module | ExportedProgram | str | Path


Axes = Mapping[str, Sequence[int]]


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


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One batch as `(args, kwargs)`: a tensor, a tuple or list of arguments, or a dict of keywords."""
    match example_inputs:
        case Tensor():
            return (example_inputs,), {}
        case Mapping():
            return (), dict(example_inputs)
        case tuple() | list():
            return tuple(example_inputs), {}
    raise InputError(
        f"inputs are a {type(example_inputs).__name__}",
        why="a batch is a tensor, a tuple of tensors or a dict of tensors",
        fix="wrap them accordingly",
    )


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


def export_module(model: nn.Module, example_inputs: Any, axes: Axes) -> tuple[ExportedProgram, bool]:
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training and not isinstance(model, fx.GraphModule):
        raise InputError(
            f"the model is in training mode ({training[0]})",
            why="dropout and batch norm behave differently there",
            fix="call model.eval() first",
        )
    if example_inputs is None:
        raise InputError("example inputs are missing", fix="pass a tensor, a tuple or a dict of tensors")
    args, kwargs = as_call(example_inputs)
    check_rows(args, kwargs)
    register_types(check_runs(model, args, kwargs), model)
    if axes:
        return export_with_axes(model, args, kwargs, axes), True
    wide_args, wide_kwargs, dynamic = widen(args, kwargs)
    if dynamic is not None:
        try:
            program = export(model, wide_args, wide_kwargs, arrange(dynamic, model))
            if has_symbolic_batch(program) and admits(program, args, kwargs):
                return program, True
        except Exception as error:
            if is_users_control_flow(error):
                raise explain_failure(model, error) from error
    try:
        return export(model, args, kwargs, None), False
    except Exception as error:
        raise explain_failure(model, error) from error


def export_with_axes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: Axes
) -> ExportedProgram:
    """Export with the batch and the named axes symbolic; refuses where the model fixes one of them."""
    wide_args, wide_kwargs, dynamic = widen(args, kwargs)
    marks = arrange(dynamic, model)
    given = arrange((args, kwargs), model)
    for name, wanted in axes.items():
        check_axes(name, wanted, given)
        marks[name] = pytree.tree_map(
            lambda mark, wanted=wanted: (mark or {}) | dict.fromkeys(wanted, Dim.AUTO),
            marks[name],
            is_leaf=is_mark,
        )
    try:
        program = export(model, wide_args, wide_kwargs, marks)
    except Exception as error:
        raise explain_failure(model, error) from error
    check_symbolic(program, axes)
    return program


def check_symbolic(program: ExportedProgram, axes: Axes) -> None:
    """Refuse a model that fixes an axis that was asked to be free; the exporter does so without a word."""
    for node in user_inputs(program):
        found = spec(node)
        wanted = next(
            (axes[name] for name in axes if node.name == name or node.name.startswith(f"{name}_")), ()
        )
        for axis in wanted:
            size = found.shape[axis] if found else 0
            if isinstance(size, int):
                raise TraceError(
                    f"axis {axis} of input '{node.name}' cannot be dynamic",
                    why=f"the model fixes its size to {size}",
                    fix="leave it out, or let the model take its size from the input",
                )


def is_mark(found: Any) -> bool:
    """A leaf among the marks: None, or axis -> Dim."""
    return found is None or (isinstance(found, dict) and all(isinstance(key, int) for key in found))


def check_axes(name: str, wanted: Sequence[int], given: Mapping[str, Any]) -> None:
    """Only an axis of at least 2 can be traced as any size: the exporter takes 1 for a broadcast."""
    if name not in given:
        raise InputError(
            f"there is no input '{name}' to be dynamic", why=f"the model takes {', '.join(given)}",
            fix="correct the name",
        )  # fmt: skip
    for x in pytree.tree_leaves(given[name]):
        short = isinstance(x, Tensor) and any(axis >= x.dim() or x.shape[axis] < 2 for axis in wanted)
        if not isinstance(x, Tensor) or short:
            shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"axes {list(wanted)} of input '{name}' cannot be dynamic", why=f"the example has {shape}",
                fix="give an example with at least 2 there",
            )  # fmt: skip


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any) -> ExportedProgram:
    with quiet(), torch.no_grad():
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)


def check_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a batch of no rows: nothing can be seen or timed on it."""
    first = next((x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()), None)
    if first is not None and not first.shape[0]:
        raise InputError(
            f"the example inputs are an empty batch of shape {list(first.shape)}", fix="give at least one row"
        )


def check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's own result; refuses example inputs on which it fails."""
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        shapes = [list(x.shape) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        raise InputError(
            f"the model fails on the example inputs of shape {', '.join(map(str, shapes))}",
            node=user_position(error),
            why=first_line(error),
            fix="pass inputs that the model itself accepts",
        ) from error


# Where a library registers its own result types with torch.export, which it does on demand.
REGISTERED_BY = {
    "transformers.cache_utils": (
        "transformers.integrations.executorch", "register_dynamic_cache_export_support"
    ),
}  # fmt: skip


def register_types(result: Any, model: nn.Module) -> None:
    """Have every type in a result known to torch.export, or refuse the one that cannot be."""
    for leaf in pytree.tree_leaves(result):
        if leaf is None or isinstance(leaf, Tensor | int | float | str):
            continue
        known = REGISTERED_BY.get(type(leaf).__module__)
        if known is not None:
            getattr(importlib.import_module(known[0]), known[1])()
        if pytree.tree_leaves(leaf) == [leaf]:
            raise TraceError(
                f"{type(model).__name__} returns a {type(leaf).__name__}",
                why="a graph returns tensors, in containers that torch.utils._pytree knows",
                fix="return its tensors, or register the type with torch.utils._pytree.register_pytree_node",
            )


def widen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Repeat a batch of one (the exporter would freeze size 1) and mark batch dimensions as dynamic."""
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
    if not leaves:
        return args, kwargs, None
    batch = leaves[0].shape[0]

    def is_batched(x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch

    def widened(x: Any) -> Any:
        return torch.cat([x, x]) if is_batched(x) and batch == 1 else x

    dynamic = pytree.tree_map(lambda x: {0: Dim.AUTO} if is_batched(x) else None, (args, kwargs))
    wide_args, wide_kwargs = pytree.tree_map(widened, (args, kwargs))
    return wide_args, wide_kwargs, dynamic


def arrange(dynamic: Any, model: nn.Module) -> dict[str, Any]:
    """The marks by the names of the parameters, which is how torch.export binds a call."""
    args, kwargs = dynamic
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def has_symbolic_batch(program: ExportedProgram) -> bool:
    return any(
        found and found.shape and not isinstance(found.shape[0], int)
        for found in map(spec, user_inputs(program))
    )


def user_inputs(program: ExportedProgram) -> list[Node]:
    users = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in users]


def admits(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the example itself fits; a model that fixes its batch size has taken on the widened one."""
    specs = map(spec, user_inputs(program))
    return all(
        not isinstance(wanted, int) or wanted == have
        for found, given in zip(specs, pytree.tree_leaves((args, kwargs)), strict=False)
        if found is not None and isinstance(given, Tensor)
        for wanted, have in zip(found.shape, given.shape, strict=True)
    )


def load_program(path: Path) -> ExportedProgram:
    if not path.exists():
        raise InputError(
            f"there is no file '{path}'", fix="check the path, or name a built-in model (`qcompiler models`)"
        )
    archive = safe_copy(path)
    try:
        with quiet():
            return torch.export.load(archive)
    except Exception as error:
        raise InputError(
            f"'{path}' is not a program that torch.export saved",
            why=first_line(error),
            fix="write it with torch.export.save(torch.export.export(model, inputs), path)",
        ) from error


def own_inputs(program: ExportedProgram) -> Any:
    """The inputs that a program was exported with, in a form that `as_call` takes; None if it has none."""
    args, kwargs = program.example_inputs or ((), {})
    if args and kwargs:
        return dict(zip(argument_names(program), pytree.tree_leaves((args, kwargs)), strict=False)) or None
    return args or kwargs or None


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


def lift(program: ExportedProgram, result: Any) -> Graph:
    """Turn lifted parameters back into constants and strip what only the exporter needs.

    `result` is the pytree spec of what the model returns.
    """
    signature = program.graph_signature
    attributes = (
        dict(signature.inputs_to_parameters)
        | dict(signature.inputs_to_buffers)
        | dict(signature.inputs_to_lifted_tensor_constants)
    )
    held = {**program.constants, **dict(program.named_buffers()), **program.state_dict}
    graph, mapping = fx.Graph(), dict[Node, Node]()
    tensors: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(list(node.args[0]), mapping.__getitem__))
            continue
        if node.op == "placeholder" and node.name in attributes:
            target = attributes[node.name]
            tensors[target] = held[target].detach()
            mapping[node] = graph.create_node("get_attr", target, name=target.replace(".", "_"))
        elif node.op == "call_function" and not is_size_check(node):
            refuse_higher_order(node)
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
            normalize_arguments(mapping[node])
        elif node.op == "placeholder":
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
        mapping_meta(node, mapping)
    return Graph(
        fx=graph,
        tensors=tensors,
        stage="traced",
        signature=Signature(
            inputs=tuple(n.name for n in graph.nodes if n.op == "placeholder"),
            in_spec=program.call_spec.in_spec,
            out_spec=result,
            argument_names=argument_names(program),
        ),
    )


def argument_names(program: ExportedProgram) -> tuple[str, ...]:
    """Names by which the arguments may be passed, where each is a single tensor."""
    args, kwargs = program.example_inputs or ((), {})
    if any(not isinstance(x, Tensor) for x in (*args, *kwargs.values())):
        return ()
    users = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return tuple(users)


def mapping_meta(node: Node, mapping: dict[Node, Node]) -> None:
    if node in mapping:
        mapping[node].meta = dict(node.meta)


def is_size_check(node: Node) -> bool:
    """Runtime assertions about symbolic sizes; the compiled call checks its inputs itself."""
    return not node.users and any(word in str(node.target) for word in ("assert", "sym_constrain"))


def refuse_higher_order(node: Node) -> None:
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise TraceError(
            f"the model uses the control-flow operator '{node.target}'",
            node=node.name,
            why="a graph is straight-line code",
            fix="move the branch out of the model and compile the parts",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter's own warnings, logs and printed graphs say nothing to a user of this compiler."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(max(before, logging.ERROR))
        try:
            yield
        finally:
            logging.disable(before)
