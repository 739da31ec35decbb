"""The contenders of any problem: each family's are in a file of their own."""

from collections.abc import Callable, Mapping, Sequence

import torch

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning import products, rows, weight_only
from qcompiler.backends.triton.tuning.bench import Contenders
from qcompiler.backends.triton.tuning.families import PRODUCTS, ROWS, WEIGHT_ONLY
from qcompiler.backends.triton.tuning.problem import Problem

Make = Callable[[Problem, Mapping[str, Configuration], Sequence[str], torch.device], Contenders]

MAKERS: Mapping[str, Make] = {
    **dict.fromkeys(PRODUCTS, products.contenders),
    "fp8_block_linear": products.contenders,
    "quantize_blocks": rows.contenders,
    **dict.fromkeys(WEIGHT_ONLY, weight_only.contenders),
    **dict.fromkeys(ROWS, rows.contenders),
}
"""By op."""


def contenders(
    problem: Problem, configurations: Mapping[str, Configuration], peers: Sequence[str], device: torch.device
) -> Contenders:
    """Candidates by name and peers, on random numbers of the problem's sizes."""
    return MAKERS[problem.op](problem, configurations, peers, device)
