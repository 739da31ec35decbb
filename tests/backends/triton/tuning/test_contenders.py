"""What is measured computes what it should, on the CPU: names, gates, and what a gate catches."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch

from qcompiler.backends.triton.tuning import bench, rows, weight_only
from qcompiler.backends.triton.tuning.bench import Contenders
from qcompiler.backends.triton.tuning.families import family_of, space, written
from qcompiler.backends.triton.tuning.problem import Problem

WEIGHTS = Problem(op="weight_only_linear", scheme="w4h_g128", M=3, N=64, K=256)
PROBLEMS = [
    WEIGHTS,
    Problem(op="weight_only_linear", scheme="w2h_g64 zeros gated", M=1, N=64, K=256, out="fp16", heavy=True),
    Problem(op="weight_only_linear", scheme="w8_g128", M=3, N=64, K=256, out="fp32", heavy=True),
    Problem(op="quantize_rows", scheme="e4m3", M=5, N=0, K=70),
    Problem(op="quantize_by_amax", scheme="int8", M=5, N=0, K=70, out="fp32"),
    Problem(op="quantize_by_scale", scheme="e4m3", M=5, N=0, K=70),
    Problem(op="quantize_both", scheme="int8", M=21, N=0, K=35, out="fp32"),
    Problem(op="quantize_both", scheme="int8 drawn ragged", M=21, N=0, K=35),
    Problem(op="quantize_blocks", scheme="e4m3", M=5, N=0, K=200),
    Problem(op="norm_quantize", scheme="int8 rms residual", M=5, N=0, K=70),
    Problem(op="norm_quantize", scheme="e4m3 layer floats", M=5, N=0, K=70, out="fp16"),
    Problem(op="hadamard_quantize", scheme="int8 32", M=5, N=0, K=96),
]


def test_what_cannot_run_or_be_captured_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an error says nothing: a reason that is empty would mean that numbers are right."""

    def silent(copy: int) -> torch.Tensor:
        raise RuntimeError

    def uncaptured(call: object, copies: int) -> torch.cuda.CUDAGraph:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(bench, "captured", uncaptured)
    made = Contenders(
        calls={"silent": silent, "waits": lambda copy: torch.ones(1), "wrong": lambda copy: torch.zeros(1)},
        copies=1, wrong=lambda name, found: "" if bool(found == 1) else "its error is 1.00e+00",
    )  # fmt: skip
    gate = bench.CudaBench(made).gate
    assert gate("silent") == "it cannot run: RuntimeError: "
    assert gate("waits") == "it cannot run: RuntimeError: operation not permitted when stream is capturing"
    assert gate("wrong") == "its error is 1.00e+00"


def test_what_a_call_leaves_unwritten_is_not_what_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of parts, of which nobody computes the second, where another candidate had them all."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(bench, "captured", lambda call, copies: None)
    used = torch.tensor([[1, 2], [3, 4]])

    def recycled(kind: torch.dtype) -> torch.Tensor:
        """As torch does it where the same number of bytes was freed."""
        given = used.new_empty(used.shape, dtype=kind)
        is_filled = torch.are_deterministic_algorithms_enabled()
        return given if is_filled else given.copy_(used)

    def call(kind: torch.dtype, written: int, copy: int) -> torch.Tensor:
        partial = recycled(kind)
        partial[:written] = used[:written]
        return partial.float().sum(0)

    made = Contenders(
        calls={
            f"{written} {kind}": partial(call, kind, written)
            for kind, written in product((torch.int32, torch.float32), (2, 1))
        },
        copies=1, wrong=lambda name, found: "" if found.tolist() == [4, 6] else "its sums are wrong",
    )  # fmt: skip
    found = {name: bench.CudaBench(made).gate(name) for name in made.calls}
    assert [name for name, why in found.items() if why] == ["1 torch.int32", "1 torch.float32"]
    assert not torch.are_deterministic_algorithms_enabled()


def contenders(problem: Problem) -> Contenders:
    prepare = weight_only.contenders if problem.N else rows.contenders
    one = space(problem, 90)[0]
    return prepare(problem, {written(one): one}, family_of(problem).peers, torch.device("cpu"))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.text)
def test_all_are_right_and_what_is_off_is_refused(problem: Problem) -> None:
    found = contenders(problem)
    assert [*found.calls][1:] == [*family_of(problem).peers]
    for name, call in found.calls.items():
        made = call(0)
        assert found.wrong(name, made) == ""
        if name == "float":
            continue
        made.copy_(made.roll(1, -1))  # kernels leave their results where they will be looked for
        assert found.wrong(name, made) != ""
