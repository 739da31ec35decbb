"""What times depend on besides a device: the text of a kernel and of what it is made of, or of a call."""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qcompiler.backends.triton.signatures import SIGNATURES

BACKEND = Path(__file__).parents[1]
FOLDER = BACKEND / "kernels"
PACKAGE = "qcompiler.backends.triton.kernels."


@cache
def compiler(kernel: str) -> str:
    """As in rows of the database: "triton 3.6.0, source 1a2b3c4d5e6f"."""
    return f"triton {version_of('triton')}, source {source_hash(SIGNATURES[kernel].module)}"


@cache
def caller(torch: str, functions: tuple[str, ...]) -> str:
    """The same of a peer, by the functions that call it: "torch 2.13.0, source 1a2b3c4d5e6f"."""
    return f"torch {torch}, source {hashed(map(text_of, functions))}"


@cache
def version_of(package: str) -> str:
    """ "none" where it is not installed: sources may lie on a path, as they do on a borrowed GPU."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def source_hash(module: str) -> str:
    """Of what modules say, comments and the places of lines aside."""
    trees, open_ = dict[str, str](), [module]
    while open_:
        name = open_.pop()
        if name not in trees:
            tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
            trees[name] = ast.unparse(tree)  # which does not differ between versions of Python as a dump does
            open_ += [
                node.module.removeprefix(PACKAGE)
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE)
            ]
    return hashed(f"{name}{trees[name]}" for name in sorted(trees))


def text_of(function: str) -> str:
    """A function of the backend by its place, "ops.linear.finished", without what it says of itself.

    "numerics.row_codes.scale_of" is one of the package's numerics.
    """
    place, _, name = function.rpartition(".")
    root = BACKEND.parents[1] if place.startswith("numerics.") else BACKEND
    tree = ast.parse((root / f"{place.replace('.', '/')}.py").read_text(encoding="utf-8"))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    if ast.get_docstring(found) is not None:
        found.body = found.body[1:]
    return ast.unparse(found)


def hashed(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:12]
