"""Scales that a step has before its tensors: `torch.ops.qcompiler.seen_before`, `operand_scale`.

    seen = seen_before()                                      largest magnitudes of the steps before, by slot
    scale, magnitude = operand_scale(x, seen, slot, ...)      the magnitude is for the steps to come

`seen_before` has no tensor arguments and no kernel: it becomes an input before a graph is lowered. What is
returned as a magnitude becomes a result.
"""

import torch
from torch import Tensor

from qcompiler.numerics.fp8 import largest
from qcompiler.numerics.operands import WHOLE
from qcompiler.numerics.scaling import scale_of_step


@torch.library.custom_op("qcompiler::seen_before", mutates_args=())
def seen_before(device: torch.device, slots: int) -> Tensor:
    """Stands for the largest magnitudes of so many operands, float32 [slots]; 0 where none was seen."""
    raise RuntimeError("seen_before stands for an input; it was not replaced by one")


@seen_before.register_fake
def _(device: torch.device, slots: int) -> Tensor:
    return torch.empty(slots, device=device)


@torch.library.custom_op("qcompiler::operand_scale", mutates_args=())
def operand_scale(x: Tensor, seen: Tensor, slot: int, format: str, margin: int) -> tuple[Tensor, Tensor]:
    """The scale of an operand, of what was seen in its slot or else its own, and max |x|: both float32 ()."""
    magnitude = x.abs().amax().float()
    scale = scale_of_step(seen[slot], magnitude, largest(WHOLE[format]), margin)
    return scale, magnitude


@operand_scale.register_fake
def _(x: Tensor, seen: Tensor, slot: int, format: str, margin: int) -> tuple[Tensor, Tensor]:
    return seen.new_empty(()), seen.new_empty(())
