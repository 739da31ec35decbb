"""The contenders of what makes codes of rows: our kernels, and torch's own, one after another.

What is made stays where it is until a copy's turn comes again, so that nothing is written to L2 alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.ops import blocks, hadamard, known, norm, quantize
from qcompiler.backends.triton.ops.quantize_both import PURPOSES, quantize_both
from qcompiler.backends.triton.ops.quantize_both import launched as launched_both
from qcompiler.backends.triton.tuning.bench import Contenders, copies_of
from qcompiler.backends.triton.tuning.families import FLOAT, mode_of
from qcompiler.backends.triton.tuning.families.base import format_of
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.products import DTYPES, activations
from qcompiler.numerics import ROW_BLOCK
from qcompiler.numerics.block_codes import block_codes
from qcompiler.numerics.hadamard import hadamard as hadamard_matrix
from qcompiler.numerics.philox import noise_key, uniform
from qcompiler.numerics.row_codes import CODES

EPS = 1e-6
KEPT = 64  # rows, and columns, that are computed again on the CPU
TENSOR = 7  # of draws
FARTHEST = 4.0  # what known scales are made for: of normal numbers few lie beyond, and these saturate

Made = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An op on x [M, K]. reference: on the CPU. kernel: on a device. apart: by torch's kernels.

    wrong: why what was made of x is not what the CPU makes of some of it, "" where it is. matrices: how many
    [M, K] x is, one below another, where an op reads more of that size.
    """

    reference: Callable[[Tensor], Made]
    kernel: Callable[[Tensor, Configuration], Made]
    apart: Callable[[Tensor], Made]
    wrong: Callable[[Made, Tensor], str]
    matrices: int = 1


def contenders(
    problem: Problem, configurations: Mapping[str, Configuration], peers: Sequence[str], device: torch.device
) -> Contenders:
    """On a CPU every configuration is the op's reference."""
    M, K, dtype = problem.M, problem.K, DTYPES[problem.out]
    kind = KINDS[problem.op](problem, device)
    copies = copies_of(M * K * dtype.itemsize, device)
    x = [activations(kind.matrices * M, K, dtype, device) for _ in range(copies)]
    made: dict[tuple[str, int], Made] = {}

    def call(name: str) -> Callable[[int], Tensor]:
        def keeping(copy: int) -> Tensor:
            if name == FLOAT:
                made[name, copy] = kind.apart(x[copy])
            elif device.type == "cpu":
                made[name, copy] = kind.reference(x[copy])
            else:
                made[name, copy] = kind.kernel(x[copy], configurations[name])
            return made[name, copy][0]

        return keeping

    def wrong(name: str, found: Tensor) -> str:
        """Of the first copy; torch adds in another order."""
        return "" if name == FLOAT else kind.wrong(made[name, 0], x[0])

    return Contenders(
        calls={name: call(name) for name in (*configurations, *peers)}, copies=len(x), wrong=wrong
    )


def differs(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """Why what a device made is not what the CPU makes, number by number."""
    off = [int((one.cpu().float() != other.float()).sum()) for one, other in zip(found, wanted, strict=True)]
    return f"{off} numbers are not those of the CPU" if any(off) else ""


def some(count: int) -> Tensor:
    return torch.randperm(count)[:KEPT]


def codes(x: Tensor, format: str, noise: Tensor | None = None) -> Made:
    """By the reference's own operations, on whatever device x is."""
    wide = x.float()
    scale = quantize.scale_of(wide, format)
    return quantize.codes_of(wide, scale, format, noise), scale


# ---------------------------------------------------------------- the ops


def of_rows(problem: Problem, device: torch.device) -> Kind:
    format, picked = format_of(problem), some(problem.M)
    return Kind(
        reference=lambda x: quantize.quantize_rows(x, format),
        kernel=lambda x, row: quantize.launched(x, format, row),
        apart=lambda x: codes(x, format),
        wrong=lambda found, x: differs([one[picked] for one in found], codes(x[picked].cpu(), format)),
    )


def of_maxima(problem: Problem, device: torch.device) -> Kind:
    """Of all copies the same, so that nobody seeks them while time is taken."""
    format, picked = format_of(problem), some(problem.M)
    amax = FARTHEST + torch.rand(problem.M)
    its = amax.to(device)

    def apart(x: Tensor) -> Made:
        scale = quantize.scale_of(its[:, None], format)
        return quantize.codes_of(x.float(), scale, format), scale

    def wrong(found: Made, x: Tensor) -> str:
        wanted = known.quantize_by_amax(x[picked].cpu(), amax[picked], format)
        return differs([one[picked] for one in found], wanted)

    return Kind(
        reference=lambda x: known.quantize_by_amax(x, its, format),
        kernel=lambda x, row: known.launched(x, its, None, format, row), apart=apart, wrong=wrong,
    )  # fmt: skip


def of_one_scale(problem: Problem, device: torch.device) -> Kind:
    format, picked = format_of(problem), some(problem.M)
    scale = torch.tensor([FARTHEST / CODES[format][1]])
    its = scale.to(device)

    def wrong(found: Made, x: Tensor) -> str:
        return differs([found[0][picked]], [known.quantize_by_scale(x[picked].cpu(), scale, format)])

    return Kind(
        reference=lambda x: (known.quantize_by_scale(x, its, format),),
        kernel=lambda x, row: known.launched(x, None, its, format, row),
        apart=lambda x: (quantize.codes_of(x.float(), its.expand(len(x)), format),), wrong=wrong,
    )  # fmt: skip


def of_both(problem: Problem, device: torch.device) -> Kind:
    """Of x [M, K] its rows, and of its transpose; the draws of a row begin at that of its first element."""
    format, (M, K) = format_of(problem), (problem.M, problem.K)
    key = noise_key(1, 2, 3) if "drawn" in mode_of(problem) else None
    its = None if key is None else key.to(device)
    rows, columns = some(M), some(K)

    def noise(picked: Sequence[int], length: int, purpose: int) -> Tensor | None:
        if key is None:
            return None
        draws = [uniform(length, key, tensor=TENSOR, purpose=purpose, offset=i * length) for i in picked]
        return torch.stack(draws)

    def apart(x: Tensor) -> Made:
        made: Made = ()
        for one, purpose in zip((x, x.t().contiguous()), PURPOSES, strict=True):
            draws = its if its is None else uniform(M * K, its, tensor=TENSOR, purpose=purpose)
            made += codes(one, format, draws if draws is None else draws.view(one.shape))
        return made

    def wrong(found: Made, x: Tensor) -> str:
        first, second = PURPOSES
        wanted = (
            *codes(x[rows].cpu(), format, noise(rows.tolist(), K, first)),
            *codes(x[:, columns].t().cpu(), format, noise(columns.tolist(), M, second)),
        )
        q, s, r, t = found
        return differs((q[rows], s[rows], r[columns], t[columns]), wanted)

    return Kind(
        reference=lambda x: quantize_both(x, format, key, TENSOR),
        kernel=lambda x, row: launched_both(x, format, its, TENSOR, row),
        apart=apart, wrong=wrong,
    )  # fmt: skip


def of_norms(problem: Problem, device: torch.device) -> Kind:
    """A residual, where there is one, lies below what it is added to; a layer norm has a bias."""
    format, words = format_of(problem), mode_of(problem).split()
    M, K, dtype, picked = problem.M, problem.K, DTYPES[problem.out], some(problem.M)
    name, floats = words[0], "floats" in words
    added = "residual" in words
    weight = torch.rand(K, device=device).to(dtype)
    bias = torch.randn(K, device=device).to(dtype) if name == "layer" else None

    def parts(x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x[:M], x[M:] if added else None

    def apart(x: Tensor) -> Made:
        x, residual = parts(x)
        h = x if residual is None else x + residual
        y = F.rms_norm(h, (K,), weight, EPS) if bias is None else F.layer_norm(h, (K,), weight, bias, EPS)
        return (*codes(y, format), h, y)

    def wrong(found: Made, x: Tensor) -> str:
        x, r = parts(x)
        x, r = x[picked].cpu(), r if r is None else r[picked].cpu()
        beside = bias if bias is None else bias.cpu()
        wanted = norm.norm_quantize(x, r, weight.cpu(), beside, None, name, EPS, format, floats)
        return differs([one[picked] if len(one) else one.cpu() for one in found], wanted)

    return Kind(
        reference=lambda x: norm.norm_quantize(*parts(x), weight, bias, None, name, EPS, format, floats),
        kernel=lambda x, row: norm.launched(*parts(x), weight, bias, None, name, EPS, format, floats, row),
        apart=apart, wrong=wrong, matrices=1 + added,
    )  # fmt: skip


def of_hadamard(problem: Problem, device: torch.device) -> Kind:
    format, block, picked = format_of(problem), int(mode_of(problem)), some(problem.M)
    matrix = hadamard_matrix(block).to(device, DTYPES[problem.out])

    def apart(x: Tensor) -> Made:
        return codes((x.view(-1, x.shape[1] // block, block) @ matrix).view(x.shape), format)

    def wrong(found: Made, x: Tensor) -> str:
        wanted = hadamard.hadamard_quantize(x[picked].cpu(), block, format)
        return differs([one[picked] for one in found], wanted)

    return Kind(
        reference=lambda x: hadamard.hadamard_quantize(x, block, format),
        kernel=lambda x, row: hadamard.launched(x, block, format, row), apart=apart, wrong=wrong,
    )  # fmt: skip


def of_blocks(problem: Problem, device: torch.device) -> Kind:
    """Scales are [blocks, M]."""
    picked = some(problem.M)

    def wrong(found: Made, x: Tensor) -> str:
        q, s = found
        return differs((q[picked], s[:, picked]), blocks.quantize_blocks(x[picked].cpu()))

    def apart(x: Tensor) -> Made:
        return block_codes(x, ROW_BLOCK, format_of(problem))

    return Kind(reference=blocks.quantize_blocks, kernel=blocks.quantized, apart=apart, wrong=wrong)


KINDS: Mapping[str, Callable[[Problem, torch.device], Kind]] = {
    "quantize_rows": of_rows,
    "quantize_by_amax": of_maxima,
    "quantize_by_scale": of_one_scale,
    "quantize_both": of_both,
    "quantize_blocks": of_blocks,
    "norm_quantize": of_norms,
    "hadamard_quantize": of_hadamard,
}
