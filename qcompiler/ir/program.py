"""An ExportedProgram as it lies in a file, and the inputs that it brings."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError
from qcompiler.ir.archive import safe_copy
from qcompiler.ir.failure import first_line
from qcompiler.ir.quiet import quiet


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


def argument_names(program: ExportedProgram) -> tuple[str, ...]:
    """Names by which the arguments may be passed, where each is a single tensor."""
    args, kwargs = program.example_inputs or ((), {})
    if any(not isinstance(x, Tensor) for x in (*args, *kwargs.values())):
        return ()
    users = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return tuple(users)
