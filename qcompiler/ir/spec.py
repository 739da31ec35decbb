"""Typed view of what a node carries; the only module that touches `node.meta`.

Every value of a graph has a `TensorSpec`: its shape (symbolic where the model is dynamic) and dtype.
A node also knows where in the user's model it came from, so that a refusal can name file and line.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and dtype of a value; a dimension is an `int` or a `torch.SymInt`."""

    shape: tuple[Any, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{DTYPE_NAMES[self.dtype]}[{', '.join(map(str, self.shape))}]"


DTYPE_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3fn",
    torch.float8_e5m2: "f8e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.bool: "b1",
    torch.complex64: "c64",
}


def value(node: Node) -> Any:
    """The fake tensor (or symbolic number) that stands for this node's result."""
    return node.meta.get("val", node.meta.get("example_value"))  # torch.compile's graphs say it otherwise


def set_value(node: Node, fake: Any) -> None:
    node.meta["val"] = fake


def spec(node: Node) -> TensorSpec | None:
    """Shape and dtype of a tensor value; None for numbers, tuples and absent results."""
    fake = value(node)
    if not isinstance(fake, torch.Tensor):
        return None
    return TensorSpec(shape=tuple(map(known_size, fake.shape)), dtype=fake.dtype)


def known_size(size: Any) -> Any:
    """A symbolic size as an int where tracing has found its value (the model fixes it), else as it is."""
    fixed = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else None
    return size if fixed is None else fixed


def is_float(node: Any) -> bool:
    """Whether `node` is a node whose value is a floating-point tensor."""
    found = spec(node) if isinstance(node, Node) else None
    return found is not None and found.dtype.is_floating_point


def returns_float(node: Node) -> bool:
    """Whether the result of a node, or the first of several, is a floating-point tensor."""
    held = value(node)
    first = held[0] if isinstance(held, tuple | list) and held else held
    return isinstance(first, torch.Tensor) and first.is_floating_point()


def module_path(node: Node) -> str:
    """Dotted path of the innermost module that made this node, '' at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    return OWNER.sub("", str(list(stack.values())[-1][0])) if stack else ""


# L['self'].blocks.0, where the method calls its module `self`
OWNER = re.compile(r"^L\['\w+'\]\.?")


def source_line(node: Node) -> str | None:
    """`file.py:12` of the user's code that made this node; library frames are skipped."""
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [frame for frame in frames if "site-packages" not in frame[0]]
    chosen = (own or frames)[-1:]
    return f"{short_path(chosen[0][0])}:{chosen[0][1]}" if chosen else None


def short_path(path: str) -> str:
    """Relative to where we are if it lies below, else its last parts: reports travel, folders do not."""
    found = Path(path)
    if found.is_relative_to(Path.cwd()):
        return str(found.relative_to(Path.cwd()))
    return str(Path(*found.parts[-3:]))


def label(node: Node) -> str:
    """The name a person knows this node by: module path if it has one, else the node's name."""
    path = module_path(node)
    return f"{path}/{node.name}" if path else node.name


def inherit(node: Node, origin: Node) -> None:
    """Let a new node answer for the source position of the node it replaces."""
    for key in ("nn_module_stack", "stack_trace"):
        if key in origin.meta and key not in node.meta:
            node.meta[key] = origin.meta[key]
