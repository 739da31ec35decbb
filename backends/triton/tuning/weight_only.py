"""The contenders of a product with a weight of few bits: our kernels, a weight that is decoded, and floats.

"dequantized" decodes the weight by torch's kernels at every call, and multiplies floats: what few bits cost
where they save memory alone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.layouts import Layout, Weight, restored
from qcompiler.backends.triton.ops.weight_only import activated, launched, weight_only_linear
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.families.weight_only import (
    activation_of,
    adds,
    has_zeros,
    is_gated,
    layout_of,
)
from qcompiler.backends.triton.tuning.gate import too_far
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.products import DTYPES, SAMPLED, activations, weights

UNIT = 2.0**-24  # of float32; sums of K are off by about sqrt(K) of it (Higham, Mary, SISC 41, 2019)
ROUNDINGS = 5  # where floats are stored between: a decoded weight, the product, its activation, gate and sum


def contenders(
    problem: Problem, configurations: Mapping[str, Configuration], peers: Sequence[str], device: torch.device
) -> Contenders:
    """With a bias, and where the problem is heavy what `activation_of` and `adds` say.

    On a CPU every configuration is the op's reference.
    """
    layout, gated, out = layout_of(problem), is_gated(problem), DTYPES[problem.out]
    M, N, K, rows = problem.M, problem.N, problem.K, problem.N * (1 + is_gated(problem))
    dtype = torch.bfloat16 if out == torch.float32 else out
    x, bias = activations(M, K, dtype, device), torch.randn(rows, device=device).to(dtype)
    residual = torch.randn(M, N, device=device).to(out) if adds(problem) else None
    activation = activation_of(problem)
    one = random_weight(rows, K, layout, has_zeros(problem), dtype, device)
    held = [copied(one) for _ in range(copies_of(one.codes.nbytes + one.scales.nbytes, device))]
    floats = [weights(rows, K, dtype, device) for _ in range(copies_of(rows * K * dtype.itemsize, device))]

    def ours(configuration: Configuration) -> Callable[[int], Tensor]:
        def call(copy: int) -> Tensor:
            w = held[copy]
            given = (x, w.codes, w.scales, w.zeros, bias, residual, layout.name, gated, activation, out)
            if device.type == "cpu":
                y: Tensor = weight_only_linear(*given)
                return y
            return launched(*given, configuration)

        return call

    def float_product(copy: int) -> Tensor:
        y = F.linear(x, floats[copy % len(floats)], bias)
        return through(y, residual, gated, activation).to(out)

    def dequantized(copy: int) -> Tensor:
        y = F.linear(x, restored(held[copy]).to(dtype), bias)
        return through(y, residual, gated, activation).to(out)

    others = {FLOAT: float_product, "dequantized": dequantized}
    sampled = torch.randperm(M, device=device)[:SAMPLED]
    sums = x[sampled].double() @ restored(one).double().t() + bias.double()
    wanted = through(
        sums, None if residual is None else residual[sampled].double(), gated, activation
    )  # fmt: skip

    def wrong(name: str, found: Tensor) -> str:
        if name == FLOAT:  # of other weights; it is nobody's reference
            return ""
        stored = ROUNDINGS * torch.finfo(dtype).eps / 2 if name == "dequantized" else 0.0
        return too_far(found[sampled], wanted, max(stored, K**0.5 * UNIT))

    ours_by_name = {name: ours(configuration) for name, configuration in configurations.items()}
    return Contenders(
        calls={**ours_by_name, **{name: others[name] for name in peers}}, copies=len(held), wrong=wrong
    )


def random_weight(
    rows: int, K: int, layout: Layout, zeros: bool, dtype: torch.dtype, device: torch.device
) -> Weight:
    """All codes are as likely; with these scales results are about as large as x."""
    shape = (rows, K // layout.group)
    spread = 2**layout.bits / 12**0.5  # of numbers that are spread evenly
    scales = (0.5 + torch.rand(shape, device=device)) / (spread * K**0.5)
    z = torch.randint(2**layout.bits, shape, dtype=torch.uint8, device=device) if zeros else None
    codes = torch.randint(256, (rows, K // layout.per_byte), dtype=torch.uint8, device=device)
    return Weight(codes=codes, scales=scales.to(dtype), zeros=z, layout=layout.name)


def copied(weight: Weight) -> Weight:
    zeros = weight.zeros if weight.zeros is None else weight.zeros.clone()
    return Weight(codes=weight.codes.clone(), scales=weight.scales.clone(), zeros=zeros, layout=weight.layout)


def through(y: Tensor, residual: Tensor | None, gated: bool, activation: str) -> Tensor:
    """What follows the sums, in the type of y."""
    y = activated(y, activation, gated)
    return y if residual is None else y + residual
