"""One normal form: text in, text out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.ir import Graph, evaluate, flatten_inputs, format_text, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.rewrite import run


class Function(nn.Module):
    def __init__(self, function: Any, *held: Any) -> None:
        super().__init__()
        self.function = function
        self.modules_ = nn.ModuleList(part for part in held if isinstance(part, nn.Module))
        for number, part in enumerate(held):
            if isinstance(part, Tensor):
                self.register_buffer(f"c{number}", part)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.modules_, *self.buffers(recurse=False))


IMAGE, ROWS, TOKENS = (2, 4, 6, 6), (2, 8), (2, 3, 8)


def settled(*modules: nn.Module) -> tuple[nn.Module, ...]:
    """With statistics and gains that a forgotten term would show in."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data = torch.rand_like(tensor) + 0.1
    return modules


def canonical(function: Any, shape: tuple[int, ...], *held: Any) -> Graph:
    """The normal form, verified on the example and on another batch, and proven to be a fixed point."""
    x = torch.randn(shape)
    graph = trace(Function(function, *held).eval(), x)
    result = run(CANONICAL, graph, verify=[x])
    for given in (x, torch.randn(5, *shape[1:])):
        torch.testing.assert_close(evaluate(result, [given]), evaluate(graph, [given]), rtol=1e-4, atol=1e-5)
    again = run(CANONICAL, replace(result, stage="traced"))
    assert format_text(again) == format_text(result)
    return result


def code(graph: Graph) -> list[str]:
    """The calls of a graph, without the names of operands that hold constants."""
    return [
        line.split(" = ")[1]
        for line in format_text(graph).splitlines()
        if "aten." in line or "qcompiler." in line
    ]


def ops(graph: Graph) -> list[str]:
    return [line.split("(")[0] for line in code(graph)]


def constants(graph: Graph) -> int:
    return sum(node.op == "get_attr" for node in graph.nodes)


def test_a_batch_norm_folds_into_its_convolution() -> None:
    torch.manual_seed(0)
    graph = canonical(lambda x, c, n: n(c(x)), IMAGE, *settled(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)))
    lines = format_text(graph).splitlines()
    assert [line.partition(":")[2].partition(" =")[0].strip() for line in lines[:-1]] == [
        "f32[n0, 4, 6, 6]", "f32[5, 4, 3, 3]", "f32[5]", "f32[n0, 5, 4, 4]",
    ]  # fmt: skip
    assert ops(graph) == ["aten.conv2d.default"]


@pytest.mark.parametrize(
    ("modules", "shape", "left"),
    [
        ((nn.Conv1d(4, 5, 3, bias=False), nn.BatchNorm1d(5)), (2, 4, 6), ["aten.conv1d.default"]),
        ((nn.Conv3d(4, 5, 2), nn.BatchNorm3d(5, affine=False)), (2, 4, 3, 3, 3), ["aten.conv3d.default"]),
        ((nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), IMAGE, ["aten.conv2d.default"]),
        ((nn.Linear(8, 5), nn.BatchNorm1d(5)), ROWS, ["aten.linear.default"]),
        ((nn.Identity(), nn.BatchNorm1d(8)), ROWS, ["aten.mul.Tensor", "aten.add.Tensor"]),
        ((nn.Identity(), nn.BatchNorm1d(3)), TOKENS, ["aten.mul.Tensor", "aten.add.Tensor"]),
        ((nn.Identity(), nn.BatchNorm2d(4)), IMAGE, ["aten.mul.Tensor", "aten.add.Tensor"]),
        ((nn.Identity(), nn.BatchNorm3d(4)), (2, 4, 3, 3, 3), ["aten.mul.Tensor", "aten.add.Tensor"]),
        (
            (nn.ConvTranspose2d(4, 5, 2), nn.BatchNorm2d(5)),
            IMAGE,
            ["aten.conv_transpose2d.input", "aten.mul.Tensor", "aten.add.Tensor"],
        ),
    ],
)
def test_no_batch_norm_is_left(
    modules: tuple[nn.Module, ...], shape: tuple[int, ...], left: list[str]
) -> None:
    assert ops(canonical(lambda x, first, second: second(first(x)), shape, *settled(*modules))) == left


def test_a_batch_norm_whose_input_is_read_elsewhere_stands_alone() -> None:
    def tapped(x: Tensor, conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
        y = conv(x)
        return norm(y), y

    graph = canonical(tapped, IMAGE, *settled(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)))
    assert ops(graph) == ["aten.conv2d.default", "aten.mul.Tensor", "aten.add.Tensor"]
    assert any(note.outcome == "refused" and "another reader" in note.reason for note in graph.notes)


def test_a_batch_norm_over_statistics_of_run_time_is_arithmetic() -> None:
    def normed(x: Tensor) -> Tensor:
        return F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3)))

    assert not any("norm" in op for op in ops(canonical(normed, IMAGE)))


GAIN = torch.rand(8) + 0.5


def rms(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return gain * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x.pow(3))))


@pytest.mark.parametrize(
    ("function", "shape", "held", "left"),
    [
        (lambda x, d: d(x) + 1, ROWS, (nn.Dropout(0.5),), ["aten.add.Tensor(x, 1)"]),
        (lambda x, e: torch.cat([e, x], 1) + 1, TOKENS, (torch.empty(0),), ["aten.add.Tensor(x, 1)"]),
        (lambda x, d: d(x) + 1, IMAGE, (nn.Dropout2d(0.5),), ["aten.add.Tensor(x, 1)"]),
        (lambda x: x.view(x.shape) + 1, ROWS, (), ["aten.add.Tensor(x, 1)"]),
        (lambda x: x.contiguous().clone() + 1, ROWS, (), ["aten.add.Tensor(x, 1)"]),
        (lambda x: x.to(torch.float32) + 1, ROWS, (), ["aten.add.Tensor(x, 1)"]),
        (lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), ROWS, (), ["aten.gelu.default(x)"]),
        (lambda x: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)), ROWS, (), ["aten.gelu.default(x)"]),
        (gelu_tanh, ROWS, (), ["aten.gelu.default(x, approximate='tanh')"]),
        (lambda x: torch.sigmoid(x) * x, ROWS, (), ["aten.silu.default(x)"]),
        (rms, TOKENS, (GAIN,), ["aten.rms_norm.default(x, [8], c0, 1e-06)"]),
        (lambda x: x.mean((2, 3)), IMAGE, (), ["qcompiler.global_avg_pool.default(x)", "aten.squeeze.dims("]),
        (lambda x: x.mean((-2, -1), True), IMAGE, (), ["qcompiler.global_avg_pool.default(x)"]),
        (lambda x: F.adaptive_avg_pool2d(x, 1), IMAGE, (), ["qcompiler.global_avg_pool.default(x)"]),
        (F.relu6, ROWS, (), ["aten.clamp.default(x, 0.0, 6.0)"]),
        (lambda x: F.hardtanh(x, -2, 2), ROWS, (), ["aten.clamp.default(x, -2"]),
        (lambda x: torch.clamp(x, min=0), ROWS, (), ["aten.relu.default(x)"]),
        (lambda x: x.clamp_min(0), ROWS, (), ["aten.relu.default(x)"]),
        (lambda x, w: x @ w, TOKENS, (torch.rand(8, 5),), ["aten.linear.default(x, "]),
        (lambda x, w: x @ w, ROWS, (torch.rand(8, 5),), ["aten.linear.default(x, "]),
        (
            lambda x, w, b: torch.addmm(b, x, w),
            ROWS,
            (torch.rand(8, 5), torch.rand(5)),
            ["aten.linear.default(x, "],
        ),
        (lambda x, w: x + (w * 2).exp(), ROWS, (torch.rand(8),), ["aten.add.Tensor(x, "]),
        (
            lambda x: x.view(-1, 4).exp() + x.view(-1, 4),
            ROWS,
            (),
            ["aten.view.default(x, [-1, 4])", "aten.exp.default(view)", "aten.add.Tensor(exp, view)"],
        ),
    ],
)
def test_normal_form(function: Any, shape: tuple[int, ...], held: tuple[Any, ...], left: list[str]) -> None:
    found = code(canonical(function, shape, *held))
    assert len(found) == len(left)
    assert all(line.startswith(start) for line, start in zip(found, left, strict=True))


@pytest.mark.parametrize(
    ("function", "held"),
    [
        (lambda x, conv, c: conv(x) * c, torch.rand(5, 1, 1)),
        (lambda x, conv, c: c + conv(x), torch.rand(1, 5, 1, 1)),
        (lambda x, conv, c: conv(x) * c + c, torch.rand(1)),
        (lambda x, conv, c: conv(F.pad(x, (1, 1, 2, 2))) + c, torch.rand(5, 1, 1)),
    ],
    ids=["scale", "bias", "both", "pad"],
)
def test_what_surrounds_a_convolution_merges_into_it(function: Any, held: Tensor) -> None:
    for conv in (nn.Conv2d(4, 5, 3), nn.Conv2d(4, 5, 3, bias=False, stride=2, padding=1)):
        graph = canonical(function, IMAGE, conv, held)
        assert ops(graph) == ["aten.conv2d.default"]
        assert constants(graph) <= 2


def test_what_follows_a_linear_layer_merges_into_it() -> None:
    graph = canonical(lambda x, layer, c: layer(x) * c + c, TOKENS, nn.Linear(8, 5), torch.rand(5))
    assert ops(graph) == ["aten.linear.default"]


def test_random_numbers_are_neither_folded_nor_merged() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.rand(2, 8) * 0 - torch.rand(2, 8) * 0

    graph = run(CANONICAL, trace(Function(noisy).eval(), torch.randn(ROWS)))
    assert ops(graph).count("aten.rand.default") == 2


def test_a_large_expanded_constant_stays_an_expression() -> None:
    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return x.sum() + mask.expand(512, 512).clone().exp()

    assert "aten.expand.default" in ops(canonical(masked, ROWS, torch.rand(1, 512)))


TINY = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 30, "max_position_embeddings": 16,
}  # fmt: skip


def transformer(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    model: nn.Module
    match kind:
        case "bert":
            model = transformers.BertModel(transformers.BertConfig(**TINY))
        case "gpt2":
            config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=30, use_cache=False)
            model = transformers.GPT2Model(config)
        case _:
            model = transformers.LlamaModel(transformers.LlamaConfig(**TINY, use_cache=False))
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "present", "absent"),
    [
        ("bert", ["gelu", "layer_norm", "linear"], ["erf"]),
        ("gpt2", ["gelu", "layer_norm", "linear"], ["tanh", "pow", "addmm"]),
        ("llama", ["rms_norm", "silu", "linear"], ["rsqrt", "pow", "mean", "sigmoid"]),
    ],
)
def test_transformers_leave_no_function_written_by_hand(
    kind: str, present: list[str], absent: list[str]
) -> None:
    torch.manual_seed(0)
    model = transformer(kind)
    inputs = {"input_ids": torch.randint(0, 30, (2, 5)), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    graph = trace(model, inputs)
    flat = flatten_inputs(graph, (), inputs)
    result = run(CANONICAL, graph, verify=flat)
    # BERT's pooler has a tanh of its own; in GPT-2 it would be a left-over.
    names = {op.split(".")[1] for op in ops(result)}
    assert names.issuperset(present) and not names.intersection(absent)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(result, flat)[0], model(**inputs)[0], rtol=1e-4, atol=1e-5)
    assert format_text(run(CANONICAL, replace(result, stage="traced"))) == format_text(result)
