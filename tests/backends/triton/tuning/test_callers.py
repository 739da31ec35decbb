"""What is said to be called for a peer is what is called."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType, ModuleType

import pytest

from qcompiler.backends.triton.tuning.callers import CALLERS

BACKEND = "qcompiler.backends.triton."
UNTIMED = {
    "layouts.layout_named", "layouts.check_shape", "ops.quantize.padded", "numerics.packing._per_byte",
    "numerics.formats.parse_format", "numerics.fp8.largest", "numerics.philox.check_draws",
    "numerics.granularity.scale_shape", "numerics.granularity._block_sizes",
    "numerics.granularity._reduce_axis", "tuning.families.base.format_of",
}  # fmt: skip
"""What looks at sizes and names alone."""
INSTEAD = {"ir.products.summed"}  # of a vendor's kernel, where there is no GPU


def module_of(place: str) -> ModuleType:
    """Of a function's place, as `callers` writes it."""
    prefix = "qcompiler." if place.startswith("numerics.") else BACKEND
    return import_module(prefix + place.rpartition(".")[0])


def timed(place: str) -> list[ast.AST]:
    """What a peer runs of a function: of one that has more to say of an op, what is `apart`."""
    tree = ast.parse(inspect.getsource(module_of(place)))
    (found,) = (
        node for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == place.rpartition(".")[2]
    )  # fmt: skip
    apart: list[ast.AST] = [
        node for node in ast.walk(found)
        if (isinstance(node, ast.FunctionDef) and node.name == "apart")
        or (isinstance(node, ast.keyword) and node.arg == "apart")
    ]  # fmt: skip
    return apart or [found]


def called(place: str) -> Iterator[str]:
    """The package's functions that a function names, by their places."""
    module = module_of(place)
    for node in (node for part in timed(place) for node in ast.walk(part)):
        found: object = None
        if isinstance(node, ast.Name):
            found = getattr(module, node.id, None)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = getattr(getattr(module, node.value.id, None), node.attr, None)
        if isinstance(found, FunctionType) and found.__module__.startswith("qcompiler."):
            name = f"{found.__module__}.{found.__qualname__}"
            yield name.removeprefix(BACKEND).removeprefix("qcompiler.")


@pytest.mark.parametrize(
    ("op", "peer"), [(op, peer) for op, peers in CALLERS.items() for peer in peers], ids=str
)
def test_all_that_a_peer_calls_is_listed_and_nothing_else(op: str, peer: str) -> None:
    """Calls of functions are followed from the first one; those of methods are not."""
    first, *_ = listed = CALLERS[op][peer]
    reached, left = set[str](), [first]
    while left:
        place = left.pop()
        if place not in reached | UNTIMED | INSTEAD:
            reached.add(place)
            left += called(place)
    assert reached == {*listed}
