"""MODEL on the command line: a built-in name, `file.py:factory` or a `.pt2` program, with its data."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qcompiler.errors import CalibrationError, InputError
from qcompiler.ir import as_call
from qcompiler.ir.failure import first_line, user_position
from qcompiler.ir.program import load_program, own_inputs
from qcompiler.models import build, describe, names

FACTORY = "return (module, example_inputs[, calibration[, metric]]) from the factory"
FIELDS = ("module", "example_inputs", "calibration", "metric")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model and all that came with it. `model` is a path for a `.pt2` program, so that reports name it."""

    name: str
    model: nn.Module | ExportedProgram | Path
    example_inputs: Any
    calibration: Any = None
    metric: Any = None
    weights_are_random: bool = False


def find_source(name: str, *, calibration: Path | None = None, batch: int | None = None) -> Source:
    """Resolve MODEL; raises InputError that says which part of it is wrong."""
    source = resolve(name)
    if calibration is not None:
        source = replace(source, calibration=read_calibration(calibration, source.example_inputs))
    if batch is not None:
        source = replace(source, example_inputs=with_rows(source.example_inputs, batch))
    return source


def resolve(name: str) -> Source:
    if name in names():
        return built_in(name)
    file, colon, factory = name.rpartition(":")
    if colon and file.endswith(".py"):
        return from_factory(Path(file), factory)
    if name.endswith(".pt2"):
        return Source(name=name, model=Path(name), example_inputs=own_inputs(load_program(Path(name))))
    if name.endswith(".py"):
        raise InputError(f"'{name}' does not say which factory", fix=f"write '{name}:factory'")
    raise InputError(
        f"there is no model '{name}'",
        fix=f"name file.py:factory, a .pt2 program, or a built-in one: {', '.join(names())}",
    )


def built_in(name: str) -> Source:
    try:
        bundle = build(name)
    except (ImportError, OSError) as error:
        raise InputError(f"the model '{name}' cannot be built", why=str(error).rstrip(".")) from error
    return Source(
        name=name, model=bundle.module, example_inputs=bundle.example_inputs, calibration=bundle.calibration,
        metric=bundle.metric, weights_are_random=describe(name).weights == "random",
    )  # fmt: skip


# ---------------------------------------------------------------- file.py:factory


def from_factory(path: Path, name: str) -> Source:
    found = called(path, name)
    given = fields_of(found)
    module, inputs = given["module"], given["example_inputs"]
    if not isinstance(module, nn.Module | ExportedProgram):
        raise InputError(
            f"the factory '{name}' of '{path}' returns a {type(found).__name__}",
            why=f"its module is {describe_type(module)}, not an nn.Module",
            fix=FACTORY,
        )
    if inputs is None and isinstance(module, ExportedProgram):
        inputs = own_inputs(module)
    if inputs is None and not hasattr(module, "empty_cache"):  # a decoder makes its own
        raise InputError(f"the factory '{name}' of '{path}' gives no example inputs", fix=FACTORY)
    check_metric(given["metric"], f"the factory '{name}' of '{path}'")
    return Source(name=name, model=module, example_inputs=inputs, calibration=given["calibration"],
                  metric=given["metric"])  # fmt: skip


def called(path: Path, name: str) -> Any:
    """What a factory returns."""
    factory = find_factory(path, name)
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the factory '{name}' of '{path}' fails",
            node=user_position(error),
            why=first_line(error),
            fix="call it without arguments and mend what it raises",
        ) from error


def find_factory(path: Path, name: str) -> Callable[[], Any]:
    if not path.is_file():
        raise InputError(f"there is no file '{path}'", fix="check the path before the colon")
    module = import_file(path)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [
            key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        ]
        raise InputError(
            f"'{path}' has no factory '{name}'",
            why=f"it defines {', '.join(own) or 'nothing'}",
            fix="name a function of it behind the colon",
        )
    return factory  # type: ignore[no-any-return]  # what it returns is looked at


def import_file(path: Path) -> Any:
    """Run a user's file as a module; its neighbours can be imported from it, as with `python file.py`."""
    spec = importlib.util.spec_from_file_location(f"_qcompiler_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        where = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else user_position(error)
        raise InputError(
            f"'{path}' cannot be imported", node=where, why=first_line(error), fix="mend the file"
        ) from error
    return module


def fields_of(found: Any, names: Sequence[str] = FIELDS) -> dict[str, Any]:
    """A tuple by position, anything else by attribute; a module may be its own bundle."""
    empty = dict.fromkeys(names)
    if isinstance(found, tuple):
        return empty | dict(zip(names, found, strict=False))
    if isinstance(found, ExportedProgram):
        return empty | {"module": found}
    itself = {"module": found} if isinstance(found, nn.Module) else {}
    return {name: getattr(found, name, None) for name in names} | itself


def describe_type(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def check_metric(metric: Any, origin: str) -> None:
    if metric is not None and not (
        callable(metric) and hasattr(metric, "name") and hasattr(metric, "samples")
    ):
        raise InputError(
            f"{origin} gives a metric that is a {type(metric).__name__}",
            why="a metric is callable and has `name` and `samples`",
            fix="see qcompiler.models.Metric, or leave it out",
        )


# ---------------------------------------------------------------- data


def with_rows(inputs: Any, rows: int) -> Any:
    """The same inputs with `rows` rows, repeated or cut; only tensors that have the batch's size change."""
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    size = leaves[0].shape[0] if leaves else 0

    def resized(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dim() or x.shape[0] != size:
            return x
        return x[torch.arange(rows) % size]

    return pytree.tree_map(resized, inputs) if size else inputs


def read_calibration(path: Path, example_inputs: Any) -> Sequence[Any]:
    """The rows of a file, cut into batches of the example's size; one array stands for a single input."""
    arrays = read_arrays(path)
    leaves = [x for x in pytree.tree_leaves(as_call(example_inputs)) if isinstance(x, Tensor) and x.dim()]
    size = leaves[0].shape[0] if leaves else 1
    lengths = {name: array.shape[0] if array.dim() else 0 for name, array in arrays.items()}
    if not lengths or len(set(lengths.values())) > 1 or min(lengths.values()) < size:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "there is no array"
        raise CalibrationError(
            f"'{path}' does not hold calibration rows",
            why=f"{found}, and a batch has {size}",
            fix="give every array the same number of rows, at least one batch",
        )
    starts = range(0, min(lengths.values()) - size + 1, size)
    if len(arrays) == 1:
        array = next(iter(arrays.values()))
        return [(array[start : start + size],) for start in starts]
    return [{name: array[start : start + size] for name, array in arrays.items()} for start in starts]


def read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        match path.suffix:
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            case ".safetensors":
                return load_file(path)
    except Exception as error:  # numpy, zip and safetensors each have their own
        raise CalibrationError(
            f"cannot read the calibration file '{path}'",
            why=first_line(error),
            fix="write it with numpy.savez or safetensors.torch.save_file",
        ) from error
    raise CalibrationError(f"'{path}' is no calibration file", fix="give a .npz or a .safetensors file")
