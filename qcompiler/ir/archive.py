"""What a `.pt2` file may hold, so that reading one from a stranger runs none of his code.

`torch.export.load` unpickles what it does not know, loads compiled libraries, and evaluates sizes and guards
as Python. Here everything of that kind is refused, and only what was looked at is handed on.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._sympy import functions as size_functions

from qcompiler.errors import InputError

# Paths below the archive's root folder; the tensors are plain bytes, described by the two configurations.
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|qcompiler)\.\w+\.\w+|_operator\.\w+|math\.\w+|torch\.(_sym|sym)_\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|map_impl)"
)
# What a size is made of, as sympy writes it.
SIZE_CALLS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "And", "Or", "Not",
    "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan",
    *(name for name in dir(size_functions) if name[0].isupper()),
}  # fmt: skip


def safe_copy(path: Path) -> io.BytesIO:
    """The archive rebuilt from the parts that are data; InputError names the first part that is not."""
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as given, zipfile.ZipFile(copy, "w") as clean:
            names = [name for name in given.namelist() if not is_extra(name)]
            if not any(name.endswith("/models/model.json") for name in names):
                raise InputError(
                    f"'{path}' is not a program that torch.export saved",
                    why="it holds no models/model.json",
                    fix="write it with torch.export.save(torch.export.export(model, inputs), path)",
                )
            for name in names:
                content = given.read(name)
                problem = objection(member_path(name), content) or twice(name, names)
                if problem:
                    fix = "export the model again as plain tensors"
                    raise InputError(f"'{path}' is refused", node=name, why=problem, fix=fix)
                is_program = member_path(name) == "models/model.json"
                clean.writestr(name, without_guards(content) if is_program else content)
    except (zipfile.BadZipFile, ValueError, RecursionError, OSError) as error:
        raise InputError(
            f"'{path}' is not a program that torch.export saved",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="write it with torch.export.save(torch.export.export(model, inputs), path)",
        ) from error
    copy.seek(0)
    return copy


def member_path(name: str) -> str:
    return name.partition("/")[2]


def is_extra(name: str) -> bool:
    """Notes that the exporting program attached; nothing here reads them."""
    return member_path(name).startswith("extra/")


def twice(name: str, names: list[str]) -> str | None:
    """Torch finds members by their name in any case and under any root, so there must be one of each."""
    same = [other for other in names if member_path(other).lower() == member_path(name).lower()]
    return "it is there twice" if len(same) > 1 else None


def objection(member: str, content: bytes) -> str | None:
    """The sentence why a member may not be loaded, or None."""
    if not MEMBERS.fullmatch(member):
        return "it is pickled or compiled code, or nothing that torch.export writes"
    if member == "data/sample_inputs/model.pt":
        return None if not content or is_plain(content) else "its example inputs are more than plain tensors"
    if member.endswith("_config.json"):
        return objection_to_payload(json.loads(content))
    if member == "models/model.json":
        return objection_to_program(json.loads(content))
    return None


def is_plain(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # whatever the reason, torch would go on to unpickle it
        return False
    return True


def objection_to_payload(config: Any) -> str | None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            return f"'{name}' is pickled"
    return None


def objection_to_program(program: Any) -> str | None:
    for key, found in strings(program):
        if key in ("target", "as_operator") and not is_operator(found):
            return f"it calls '{found}', which is no operator on tensors"
        if key == "expr_str" and not is_size(found):
            return f"'{found[:60]}' is no size"
        if key in ("in_spec", "out_spec") and found and not is_structure(json.loads(found)[1]):
            return f"its {key} would import a module"
    return None


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a JSON value; the elements of a list belong to the list's key."""
    if isinstance(value, dict):
        for inner, part in value.items():
            yield from strings(part, inner)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part, key)
    elif isinstance(value, str):
        yield key, value


def is_operator(target: str) -> bool:
    if not OPERATORS.fullmatch(target):
        return False
    found: Any = torch.ops
    for part in target.split(".")[2:] if target.startswith("torch.ops.") else ():
        found = getattr(found, part, None)
    schema = getattr(found, "_schema", None)
    return schema is None or all(argument.name != "filename" for argument in schema.arguments)


def is_size(expression: str) -> bool:
    try:
        return is_size_tree(ast.parse(expression, mode="eval").body)
    except SyntaxError:
        return False


def is_size_tree(tree: ast.expr) -> bool:
    match tree:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=assumed):
            return name.isidentifier() and all(isinstance(word.value, ast.Constant) for word in assumed)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(number))], keywords=assumed):
            plain = all(isinstance(word.value, ast.Constant) for word in assumed)
            return re.fullmatch(r"[-+.\de]+", number) is not None and plain
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]):
            return name in SIZE_CALLS and all(map(is_size_tree, parts))
        case ast.BinOp(left=left, right=right):
            return is_size_tree(left) and is_size_tree(right)
        case ast.UnaryOp(operand=part):
            return is_size_tree(part)
        case ast.Constant(value=int() | float()):
            return True
        case ast.Name(id=name):
            return re.fullmatch(r"[a-z]+\d+|true|false|oo|int_oo", name) is not None
    return False


def is_structure(spec: Any) -> bool:
    """Whether a serialized pytree is made of containers that need no import."""
    if spec["type"] == "collections.defaultdict" or "__enum__" in keys(json.loads(spec["context"] or "null")):
        return False
    return all(map(is_structure, spec["children_spec"]))


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def without_guards(content: bytes) -> bytes:
    """Guards are Python that torch would execute; the compiled call checks its inputs itself."""
    return json.dumps(json.loads(content) | {"guards_code": []}).encode()
