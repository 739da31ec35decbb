"""What a kernel's machine code depends on: the text of its module and of those it is made of."""

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qcompiler.backends.triton.signatures import SIGNATURES

FOLDER = Path(__file__).parents[1] / "kernels"
PACKAGE = "qcompiler.backends.triton.kernels."


@cache
def compiler(kernel: str) -> str:
    """As in rows of the database: "triton 3.6.0, source 1a2b3c4d5e6f"."""
    return f"triton {version_of('triton')}, source {source_hash(SIGNATURES[kernel].module)}"


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
    text = "".join(f"{name}{trees[name]}" for name in sorted(trees))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
