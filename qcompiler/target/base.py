"""A target is a table: which ops it computes in which formats, with which kernel, fused with what.

Passes ask the table and never compare names of backends.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Node

from qcompiler.errors import TargetError
from qcompiler.rewrite import Trait, traits
from qcompiler.target.costs import Costs

Output = Literal["required", "optional", "never", "same"]
RangeOf = Literal["tensor", "row"]


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One op that a target can compute on integer codes.

    output: "required": the kernel only exists with a quantized result; "optional": it can also return
    float; "never": it returns nothing else; "same": codes pass through, so input and output share one scale
    and zero point.
    to_float: the kernel that returns float and adds a float bias, where that is another one.
    adds: it adds another quantized tensor of the result's shape before it rounds once.
    adds_floats: it adds another float tensor of the result's shape where it returns float.
    starts: worth quantizing an input for. A row that does not start carries integers that are there anyway.
    links: worth computing on codes between a kernel that can return them and one that starts.
    where: which calls of the op the kernel computes as torch does.
    """

    op: Any
    kernel: str
    formula: str
    operands: tuple[str, ...]
    weight: str | None = None
    bias: str | None = None
    output: Output = "required"
    to_float: str = ""
    absorbs: Trait = Trait.NONE
    adds: bool = False
    adds_floats: bool = False
    starts: bool = False
    links: bool = False
    where: Callable[[Node], bool] = lambda node: True


@dataclass(frozen=True, kw_only=True)
class Support:
    """How a format is executed, and why: by kernels for its codes, or only stored and computed in float."""

    executes: Literal["integer", "fp8", "float"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """A weight format that a float op may read directly.

    The kernel rounds its float input to `activation_bits` in blocks along the reduction: of the weight's
    group size, or of `default_block` where a weight has one scale per column. None: it rounds it to nothing.
    scales: the type that those of the weight are rounded to, before codes are chosen.
    reads: types of its float input. outputs, inputs: what the sizes of a weight must be multiples of.
    """

    format: str
    kernel: str
    blocks: tuple[int, ...]  # allowed group sizes along the reduction; 0 = one scale per column
    activation_bits: int | None = 8
    default_block: int = 32
    scales: str = "float32"
    reads: frozenset[torch.dtype] = frozenset({torch.float32})
    outputs: int = 1
    inputs: int = 1


@dataclass(frozen=True, kw_only=True)
class AttentionKernel:
    """A kernel for `qcompiler::cached_attention`, and the widths of a head that it takes."""

    name: str
    multiple: int = 1
    rotary_multiple: int = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """Everything that the compiler may ask about where a model will run.

    Invariants: `activation` and `weight` are keys of their support tables and execute in integers;
    `rows` has one row per op.
    """

    name: str
    backend: str
    kin: Mapping[str, str] = field(default_factory=dict)  # backend -> the target of this machine for it
    activation: str
    weight: str
    activations: Mapping[str, Support]
    weights: Mapping[str, Support]
    rows: tuple[KernelRow, ...]
    weight_only: tuple[WeightOnly, ...] = ()
    dynamic_kernel: str | None = None
    dynamic_formats: tuple[str, ...] = ("uint8",)  # of activations whose range is taken at run time
    range_of: RangeOf = "tensor"  # what such a range is of; that of a row is symmetric
    dynamic_blocks: Mapping[str, int] = field(default_factory=dict)  # format -> numbers of a row in a block
    block_kernel: str = ""  # which reads them
    # Formats of activations whose range is known before that kernels read; None: all of `activations`.
    calibrated_formats: tuple[str, ...] | None = None
    zero_points: bool = True  # whether such codes may have a zero point
    floats: frozenset[torch.dtype] = frozenset({torch.float32})  # that models may compute in
    rotary: bool = False  # whether a kernel computes `qcompiler::rotary`
    attention: AttentionKernel | None = None
    by_token: bool = False  # whether attention is one op that reads heads side by side
    # Modes in which linears of one input are better one -> up to how many rows; None: `costs` weigh each.
    joins: Mapping[str, int | None] = field(default_factory=dict)
    carries_moves: frozenset[Any] = frozenset()
    movement_kernel: str = "on codes"
    opset: Mapping[str, int] = field(default_factory=dict)  # lowest ONNX opset by format
    features: tuple[str, ...] = ()  # CPU features that the speed depends on
    range_macs: float = 0.0  # multiply-accumulates that take as long as finding the range of one element
    weight_limit: int | None = None  # largest |code| where the features are missing
    costs: Costs | None = None  # by which fusions are taken or refused; None: all that can be are taken

    def row(self, node: Node) -> KernelRow | None:
        """The row for a node's op; data movement is one row for all ops of that trait that are carried."""
        for row in self.rows:
            if row.op == node.target and row.where(node):
                return row
        if node.target in self.carries_moves and Trait.MOVES_DATA in traits(node):
            return KernelRow(
                op=node.target, kernel=self.movement_kernel, formula="move", operands=("self",), output="same"
            )
        return None

    def computes(self, format: str) -> bool:
        """Whether some kernel multiplies codes of a format as they are."""
        found = (table.get(format) for table in (self.activations, self.weights))
        return "int" in format or any(
            support is not None and support.executes != "float" for support in found
        )

    def reader_of(self, weights: str) -> WeightOnly | None:
        """How a float op reads weights of a format; None where none does."""
        name = self.weight if weights == "target" else weights
        return next((row for row in self.weight_only if row.format == name), None)

    def group_sizes(self, weights: str) -> tuple[int, ...]:
        """The group sizes, ascending, in which a float op reads weights of a format; 0 is one per column."""
        name = self.weight if weights == "target" else weights
        return tuple(sorted({size for row in self.weight_only if row.format == name for size in row.blocks}))

    def supports(self, format: str, role: Literal["activations", "weights"]) -> Support:
        table: Mapping[str, Support] = getattr(self, role)
        if format not in table:
            raise TargetError(
                f"target '{self.name}' cannot hold {role} in '{format}'",
                why=f"it knows {', '.join(table)}",
                fix="choose one of these formats, or another target",
            )
        return table[format]


TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    TARGETS[target.name] = target
    return target


def find_target(name: str | Target, backend: str = "auto") -> Target:
    """The target of that name, or its kin for another backend."""
    if isinstance(name, str) and name in TARGETS:
        name = TARGETS[name].kin.get(backend, name)
    if isinstance(name, Target):
        return name
    if name not in TARGETS:
        raise TargetError(
            f"there is no target '{name}'",
            fix=f"choose one of {', '.join(sorted(TARGETS))}",
        )
    return TARGETS[name]
