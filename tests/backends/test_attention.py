"""Attention as one kernel: where heads come from is found by running data movement on indices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.backends.ort import open_executable, write_onnx
from qcompiler.backends.ort.prepare import prepare
from qcompiler.ir import Graph, arguments, evaluate, spec, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import planned
from qcompiler.passes.forms import forms
from qcompiler.passes.heads import heads_of, is_attention, merged, operands
from qcompiler.progress import silent
from qcompiler.proof import quantized
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import find_target

HEADS, DEPTH = 4, 8
WIDTH = HEADS * DEPTH
sdpa = F.scaled_dot_product_attention


class Attends(nn.Module):
    """A linear for each of q, k and v, then `attend(q, k, v, mask)` on [B, S, WIDTH]."""

    def __init__(self, attend: Callable[..., Tensor], kv_heads: int = HEADS) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.k, self.v = (nn.Linear(WIDTH, n * DEPTH) for n in (HEADS, kv_heads, kv_heads))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(self.q(x), self.k(x), self.v(x), mask)


def split(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], -1, DEPTH).transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    return sdpa(split(q), split(k), split(v), attn_mask=mask, **options).transpose(1, 2).flatten(2)


def permuted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    a, b, c = (x.reshape(x.shape[0], -1, HEADS, DEPTH).permute(0, 2, 1, 3) for x in (q, k, v))
    return sdpa(a, b, c, attn_mask=mask).permute(0, 2, 1, 3).reshape(q.shape)


def packed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """One tensor for all three: its columns are found."""
    both = (q + 0 * k).repeat(1, 1, 3)
    a, b, c = both.reshape(q.shape[0], -1, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
    return sdpa(a, b, c).transpose(1, 2).reshape(q.shape)


def repeated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Keys and values repeated for the query heads that share them."""

    def again(x: Tensor) -> Tensor:
        wide = split(x)[:, :, None].expand(-1, -1, 2, -1, -1)
        return wide.reshape(x.shape[0], HEADS, -1, DEPTH)

    return sdpa(split(q), again(k), again(v), is_causal=True).transpose(1, 2).flatten(2)


def scaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return plain(q, k, v, None, scale=0.3)


def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return plain(q, k, v, None, enable_gqa=True, is_causal=True)


def turned(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The queries are no plain columns any more; heads stay heads."""
    return sdpa(split(q).flip(3), split(k), split(v)).transpose(1, 2).flatten(2)


def keys(batch: int, tokens: int) -> Tensor:
    """[B, 1, 1, T]: the second half of every other sequence is padding."""
    mask = torch.ones(batch, 1, 1, tokens, dtype=torch.bool)
    mask[::2, ..., tokens // 2 :] = False
    return mask


def nowhere(batch: int, tokens: int) -> Tensor:
    """[B, 1, S, T]: one query of each sequence may look nowhere."""
    mask = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool)
    mask[:, :, 1] = False
    return mask


def added(batch: int, tokens: int) -> Tensor:
    """[B, heads, S, T], added to the scores."""
    return torch.randn(batch, HEADS, tokens, tokens)


CASES = {
    "plain": (plain, HEADS, None), "permuted": (permuted, HEADS, None), "packed": (packed, HEADS, None),
    "scaled": (scaled, HEADS, None), "repeated": (repeated, 2, None), "grouped": (grouped, 2, None),
    "keys": (plain, HEADS, keys), "nowhere": (plain, HEADS, nowhere), "added": (plain, HEADS, added),
}  # fmt: skip


def canonical(attend: Any, kv_heads: int, *inputs: Tensor) -> Graph:
    return run(CANONICAL, trace(Attends(attend, kv_heads).eval(), inputs))


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_computes_what_torch_does(case: str, tmp_path: Path) -> None:
    attend, kv_heads, masked = CASES[case]

    def inputs(batch: int) -> list[Tensor]:
        return [torch.randn(batch, 6, WIDTH), *([masked(batch, 6)] if masked else [])]

    graph = canonical(attend, kv_heads, *inputs(2))
    write_onnx(graph, tmp_path / "model.onnx", portable=False)
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes.count("Attention") == 1
    assert not {"Transpose", "Softmax", "IsNaN", "Where"} & set(nodes)
    engine = open_executable(graph, tmp_path / "model.onnx", threads=1)
    for batch in (1, 2, 3):
        x = inputs(batch)
        torch.testing.assert_close(engine(x), evaluate(graph, x), rtol=1e-5, atol=1e-6)


def test_a_mask_that_two_blocks_read_is_spread_once() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Attends(plain), Attends(plain)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x, mask), mask)
            return y

    graph = run(CANONICAL, trace(Two().eval(), (torch.randn(2, 6, WIDTH), keys(2, 6))))
    attentions = [
        node
        for node in prepare(graph, opset=23, portable=False).nodes
        if node.target is torch.ops.qcompiler.attention.default
    ]
    masks = {arguments(node)["mask"] for node in attentions}
    assert len(attentions) == 2 and len(masks) == 1
    assert [tuple(found.shape[-2:]) for found in map(spec, masks) if found] == [(6, 6)]


def test_linears_of_one_input_share_its_reshape() -> None:
    model = Attends(lambda q, k, v, mask: torch.cat([q, k, v], -1)).eval()
    x = torch.randn(2, 6, WIDTH)
    recipe, cpu = find_recipe({"base": "int8", "smooth": None, "bias_correction": False}), find_target("cpu")
    decision = planned(run(CANONICAL, trace(model, x)), [x], recipe, cpu, silent)
    ready = prepare(quantized(decision), opset=21, portable=True)
    linears = [node for node in ready.nodes if node.target is torch.ops.aten.linear.default]
    assert len(linears) == 3
    (read,) = {node.all_input_nodes[0] for node in linears}
    assert read.meta["val"].dim() == 2


def test_heads_that_are_no_columns_are_attended_by_head(tmp_path: Path) -> None:
    x = torch.randn(2, 6, WIDTH)
    graph = canonical(turned, HEADS, x)
    (attention,) = filter(is_attention, graph.nodes)
    assert heads_of(attention.args[0]) is None  # type: ignore[arg-type]
    assert operands(attention) is None and merged(attention) is not None
    write_onnx(graph, tmp_path / "model.onnx", portable=False)
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes.count("Attention") == 1
    engine = open_executable(graph, tmp_path / "model.onnx", threads=1)
    torch.testing.assert_close(engine([x]), evaluate(graph, [x]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("attend", "kv_heads", "repeats"), [(plain, HEADS, 1), (repeated, 2, 2)])
def test_where_heads_come_from(attend: Any, kv_heads: int, repeats: int) -> None:
    graph = canonical(attend, kv_heads, torch.randn(2, 6, WIDTH))
    (attention,) = filter(is_attention, graph.nodes)
    q, k, v = operands(attention) or (None, None, None)
    assert q is not None and k is not None and v is not None
    assert (q.heads, q.repeats, q.width) == (HEADS, 1, DEPTH)
    assert (k.heads, k.repeats) == (v.heads, v.repeats) == (kv_heads, repeats)
    assert len({q.source, k.source, v.source}) == 3


def test_an_older_opset_gets_the_pieces(tmp_path: Path) -> None:
    graph = canonical(plain, HEADS, torch.randn(2, 6, WIDTH))
    write_onnx(graph, tmp_path / "model.onnx", opset=21)
    nodes = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Attention" not in nodes and "Softmax" in nodes


def test_a_portable_file_holds_standard_operators_only(tmp_path: Path) -> None:
    graph = canonical(plain, HEADS, torch.randn(2, 6, WIDTH))
    write_onnx(graph, tmp_path / "model.onnx")
    assert {entry.domain for entry in onnx.load(tmp_path / "model.onnx").opset_import} == {""}


def rotate_half(x: Tensor) -> Tensor:
    first, second = x[..., : DEPTH // 2], x[..., DEPTH // 2 :]
    return torch.cat((-second, first), -1)


class Rotary(nn.Module):
    """Rotary positions in one of the ways that models write them; the keys are returned, too."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.written = written
        self.q, self.k, self.v = (nn.Linear(WIDTH, n * DEPTH) for n in (HEADS, 2, 2))
        angles = torch.outer(torch.arange(6.0), 100.0 ** -torch.arange(0, 1, 2 / DEPTH))
        self.cos, self.sin = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        if self.written == "as halves":
            first, second = x.chunk(2, -1)
            return torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], -1)
        second_half = self.cos if self.written == "as a sum" else 2 * self.cos
        cos = torch.cat([self.cos, second_half], -1)[None, None]
        sin = torch.cat([self.sin, self.sin], -1)[None, None]
        return x * cos + rotate_half(x) * sin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.turned(split(self.q(x))), self.turned(split(self.k(x))), split(self.v(x))
        return sdpa(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2), k


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize("written", ["as halves", "as a sum", "with other tables"])
def test_rotary_positions_are_one_operator_by_token(written: str, opset: int, tmp_path: Path) -> None:
    x = torch.randn(2, 6, WIDTH)
    cpu, recipe = find_target("cpu"), find_recipe("int8-dynamic")
    graph = run(forms(recipe, cpu), run(CANONICAL, trace(Rotary(written).eval(), (x,))))
    write_onnx(graph, tmp_path / "model.onnx", opset=opset)
    model = onnx.load(tmp_path / "model.onnx")
    nodes = [node.op_type for node in model.graph.node]
    is_one = opset == 23 and written != "with other tables"
    assert nodes.count("RotaryEmbedding") == (2 if is_one else 0)
    assert not is_one or nodes.count("Transpose") == 1  # of the keys that are returned
    assert {entry.domain for entry in model.opset_import} == {""}
    engine = open_executable(graph, tmp_path / "model.onnx", threads=1)
    for batch in (1, 3):
        x = torch.randn(batch, 6, WIDTH)
        torch.testing.assert_close(engine([x]), evaluate(graph, [x]), rtol=1e-5, atol=1e-6)
