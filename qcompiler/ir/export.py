"""A module as an ExportedProgram, its batch symbolic where it allows that."""

from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError
from qcompiler.ir.axes import (
    Axes,
    admits,
    arrange,
    check_axes,
    check_symbolic,
    has_symbolic_batch,
    is_mark,
    widen,
)
from qcompiler.ir.example import as_call, check_rows, check_runs, register_types
from qcompiler.ir.failure import explain_failure, is_users_control_flow
from qcompiler.ir.quiet import quiet


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


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any) -> ExportedProgram:
    with quiet(), torch.no_grad():
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)
