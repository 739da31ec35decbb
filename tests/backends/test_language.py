"""The operators of decoders in ONNX Runtime: one kernel each, and the reference's values."""

from __future__ import annotations

from functools import cache
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qcompiler.backends.memory import HeldMemory, memory_of, writes_in_place
from qcompiler.backends.ort import Ort, OrtExecutable
from qcompiler.backends.ort.memory import BoundMemory
from qcompiler.ir import evaluate, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.plan import LayerPlan, Plan
from qcompiler.rewrite import run
from tests.models.test_decoder import small
from tests.passes.test_forms import call, canonical, formed

FAMILIES: tuple[Literal["llama", "gpt2"], ...] = ("llama", "gpt2")


@cache
def lowered(family: Literal["llama", "gpt2"]) -> OrtExecutable:
    module = small(family)
    return Ort().lower(formed(canonical(module, call(module, 5, 3), dynamic={"tokens": (1,)})), threads=1)


def kernels(executable: OrtExecutable) -> dict[str, int]:
    return dict(executable.execution(Plan(recipe="float", target="cpu")).kernels)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_a_part_and_a_step_are_what_the_reference_says(family: Literal["llama", "gpt2"]) -> None:
    executable, module = lowered(family), small(family)
    for tokens, start, batch in ((5, 0, 1), (4, 0, 3), (3, 7, 1), (1, 15, 2)):
        flat = pytree.tree_leaves(call(module, tokens, start, batch))
        wanted = evaluate(executable.graph, flat)
        for found, expected in zip(executable(flat), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_runs_in_one_kernel_per_operator() -> None:
    executable = lowered("llama")
    counts = kernels(executable)
    assert counts["GroupQueryAttention"] == 2
    assert counts["SimplifiedLayerNormalization"] == 5
    assert counts["QuickGelu"] == 2
    layer = LayerPlan(
        node="cached_attention_default",
        label="",
        op="cached_attention",
        kernel="float",
        precision="float",
        why="",
    )
    (row,) = executable.execution(Plan(recipe="float", target="cpu", layers=(layer,))).layers
    assert (row.kernel, row.precision) == ("GroupQueryAttention", "float")
    assert not counts.keys() & {"Softmax", "ScatterElements", "Transpose", "Sigmoid", "ReduceMean", "Concat"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bound_cache_gives_what_an_unbound_one_gives(family: Literal["llama", "gpt2"]) -> None:
    executable = lowered(family)
    memory, held = memory_of(executable), HeldMemory(executable)
    assert isinstance(memory, BoundMemory)
    for part in torch.split(torch.randint(0, 50, (1, 12)), [5, 4, 1, 1, 1], 1):
        assert torch.equal(memory.feed(part), held.feed(part))
    assert memory.length == held.length == 12


def test_a_cache_that_is_not_written_by_one_op_is_not_bound() -> None:
    """What is returned must be the given buffer with rows written into it, and nothing else may read it."""
    module = small("llama")
    plain = canonical(module, call(module, 5, 3))
    assert not writes_in_place(plain)
    assert isinstance(memory_of(Ort().lower(plain, threads=1)), HeldMemory)
    graph = formed(plain)
    assert writes_in_place(graph)
    first, *others = graph.results
    graph.output.args = ([first, *reversed(others)],)
    assert not writes_in_place(graph)


class Norm(nn.Module):
    def __init__(self, shape: tuple[int, ...], affine: bool, eps: float | None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape, eps=eps, elementwise_affine=affine)
        if affine:
            nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


@pytest.mark.parametrize(
    ("shape", "affine", "eps"), [((8,), True, 1e-3), ((4, 8), True, 1e-6), ((8,), False, None)]
)
def test_every_rms_norm_is_what_torch_computes(
    shape: tuple[int, ...], affine: bool, eps: float | None
) -> None:
    model, x = Norm(shape, affine, eps).eval(), torch.randn(3, 4, 8)
    executable = Ort().lower(run(CANONICAL, trace(model, x)), threads=1)
    torch.testing.assert_close(executable([x])[0], model(x), rtol=1e-5, atol=1e-6)
    assert ("SimplifiedLayerNormalization" in kernels(executable)) == (len(shape) == 1 and affine)
