"""What may compute a linear on codes: ours, and what vendors have, as rows with one way to call them.

    y[m, n] = act((sum_k a[m, k] b[n, k]) s_m t_n + bias_n) + residual[m, n]

Where rows have no scales of their own there is no s_m. Of a candidate that reads floats, a and b are floats,
and there are no scales; of one that reads a weight of few bits, a is floats, and the other three are its
codes, scales and zero points. Told that they are `gated`, these two have a weight of 2 N rows, whose first N
are activated and multiply the others. Which one computes is said by decisions over M, so a candidate is here
because it can, and never because it is assumed to be fast. Names are those of `tuning.families`: of an op, or
a peer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import qcompiler.backends.triton.ops  # noqa: F401  registers torch.ops.qcompiler.triton_*
from qcompiler.backends.triton.layouts import LAYOUTS
from qcompiler.backends.triton.ops import blocks
from qcompiler.backends.triton.ops.linear import ACTIVATIONS, finished
from qcompiler.backends.triton.ops.weight_only import activated
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.ir.products import summed

qc = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """format: of the codes that it stands for. reads_codes: else it reads floats, and codes are decoded once.

    onward: the same with codes for its result, by a scale that it is given. peaked: the same with the maxima
    of rows beside its result. None where it knows no such way.
    more: arguments beside those that all have. refuses: why it cannot compute [M, K] times [N, K] by M, N and
    K, or "".
    """

    name: str
    format: str
    compute: Callable[..., Tensor]
    onward: Callable[..., Tensor] | None = None
    peaked: Callable[..., tuple[Tensor, Tensor]] | None = None
    reads_codes: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)
    refuses: Callable[[int, int, int], str] = lambda M, N, K: ""


def float_linear(
    a: Tensor,
    a_scale: None,
    b: Tensor,
    b_scale: None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    *,
    gated: bool = False,
) -> Tensor:
    """cuBLAS on a CUDA device; every step in the model's own type."""
    y = activated(F.linear(a, b, bias), activation, gated)
    return (y if residual is None else y + residual).to(dtype)


def int_mm(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """cuBLAS' sums in int32, and the rest in kernels behind it; the weight is a view of [N, K]."""
    sums = torch._int_mm(a, b.t()) if a.is_cuda else summed(a, b.t())
    return finished(sums.float(), a_scale, b_scale, bias, residual, activation, dtype)


def scaled_mm(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    *,
    accumulation: str = "fast",
) -> Tensor:
    """cuBLAS' product of FP8 with a scale for each row of both, which returns bfloat16."""
    if not a.is_cuda:
        return finished(a.float() @ b.float().t(), a_scale, b_scale, bias, residual, activation, dtype)
    y = torch._scaled_mm(
        a, b.t(), a_scale[:, None], b_scale[None, :], out_dtype=torch.bfloat16,
        use_fast_accum=accumulation == "fast",
    ).float()  # fmt: skip
    y = ACTIVATIONS[activation](y if bias is None else y + bias.float())
    return (y if residual is None else y + residual.float()).to(dtype)


def scaled_mm_of_blocks(a: Tensor, *given: Any, **more: Any) -> Tensor:
    """cuBLAS' product of FP8 with a scale for each block."""
    y: Tensor = (blocks.scaled_mm if a.is_cuda else qc.triton_fp8_block_linear)(a, *given, **more)
    return y


def multiples(of: int, above: int = 0) -> Callable[[int, int, int], str]:
    """What vendors want of sizes: N and K multiples, and more rows than some."""

    def refuses(M: int, N: int, K: int) -> str:
        if not above < M:
            return f"it wants more than {above} rows"
        if N % of:
            return f"{N} outputs are no multiple of {of}"
        return f"{K} inputs are no multiple of {of}" if K % of else ""

    return refuses


CANDIDATES: tuple[Candidate, ...] = (
    Candidate(
        name="int8_linear", format="int8", compute=qc.triton_int8_linear.default,
        onward=qc.triton_linear_codes.default, peaked=qc.triton_linear_amax.default,
    ),
    Candidate(
        name="fp8_linear", format="e4m3", compute=qc.triton_fp8_linear.default,
        peaked=qc.triton_linear_amax.default, more={"accumulation": "fast"},
    ),
    Candidate(
        name="fp8_linear_promote128", format="e4m3", compute=qc.triton_fp8_linear.default,
        peaked=qc.triton_linear_amax.default, more={"accumulation": "promote128"},
    ),
    Candidate(name="fp8_block_linear", format="e4m3b128", compute=qc.triton_fp8_block_linear.default),
    # pytorch/pytorch#178469: more than 16 rows, and sizes that are multiples of 8
    Candidate(name="int_mm", format="int8", compute=int_mm, refuses=multiples(8, above=16)),
    Candidate(name="scaled_mm", format="e4m3", compute=scaled_mm, refuses=multiples(16)),
    Candidate(name="scaled_mm", format="e4m3b128", compute=scaled_mm_of_blocks, refuses=multiples(128)),
    *(
        Candidate(name=FLOAT, format=name, compute=float_linear, reads_codes=False)
        for name in ("int8", "e4m3", "e4m3b128", *LAYOUTS)
    ),
    *(
        Candidate(
            name="weight_only_linear", format=name, compute=qc.triton_weight_only_linear.default,
            more={"layout": name, "gated": False},
        )
        for name in LAYOUTS
    ),
)  # fmt: skip

OURS: Mapping[str, str] = {
    "int8": "int8_linear", "e4m3": "fp8_linear", "e4m3b128": "fp8_block_linear",
    **dict.fromkeys(LAYOUTS, "weight_only_linear"),
}  # fmt: skip
"""By format, the candidate that refuses nothing that is lowered."""
ONWARD = "linear_codes"  # what reports call the way of a candidate that hands on codes


def candidate(name: str, format: str) -> Candidate | None:
    return next((row for row in CANDIDATES if (row.name, row.format) == (name, format)), None)
