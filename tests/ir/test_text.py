"""The text of a graph can be read back, its fingerprint means what it says, and hostile text runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from qcompiler.errors import ArtifactError, GraphError
from qcompiler.ir import (
    Draft,
    Graph,
    Signature,
    TensorSpec,
    evaluate,
    fingerprint,
    format_text,
    parse_text,
    trace,
    with_tensors,
)
from qcompiler.models import build

UNARY = ["relu", "neg", "exp", "abs"]
BINARY = ["add", "mul", "sub"]


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Straight-line code on a few values of one shape."""
    lines = ["x: f32[n0, 4] = input()", 'w: f32[4] = tensor("w")', 's: f32[()] = tensor("s")']
    names = ["x", "w", "s"]
    for number in range(draw(st.integers(1, 8))):
        first = draw(st.sampled_from(names))
        if draw(st.booleans()):
            lines.append(f"v{number} = aten.{draw(st.sampled_from(UNARY))}.default({first})")
        else:
            literal = st.floats(-4, 4, width=32).map(repr) | st.sampled_from(["inf", "-inf", "-2", "3"])
            second = draw(st.sampled_from(names) | literal)
            lines.append(f"v{number} = aten.{draw(st.sampled_from(BINARY))}.Tensor({first}, {second})")
        names.append(f"v{number}")
    return "\n".join([*lines, f"return [{names[-1]}, 3, None]"])


TENSORS = {"w": torch.arange(4.0), "s": torch.tensor(2.0)}


def signature(*inputs: str) -> Signature:
    return Signature(inputs=inputs, in_spec=None, out_spec=None)


def parse(text: str, inputs: tuple[str, ...] = ("x",)) -> Graph:
    return parse_text(text, TENSORS, signature(*inputs), "traced")


def again(graph: Graph) -> Graph:
    return parse_text(format_text(graph), graph.tensors, graph.signature, graph.stage)


@settings(max_examples=40)
@given(text=texts())
def test_text_and_fingerprint_survive_a_round(text: str) -> None:
    graph = parse(text)
    copy = again(graph)
    assert format_text(copy) == format_text(graph)
    assert fingerprint(copy) == fingerprint(graph)
    x = torch.randn(3, 4)
    torch.testing.assert_close(
        evaluate(copy, [x])[0], evaluate(graph, [x])[0], rtol=0, atol=0, equal_nan=True
    )


class Everything(nn.Module):
    """Kinds of arguments and results that text must carry."""

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Any, ...]:
        first, second = x.chunk(2, 1)
        filled = first.masked_fill(first > 0, float("-inf")).to(torch.float64)
        grid = torch.arange(x.shape[0] * 2, dtype=torch.float32).view(x.shape[0], 2)
        like = torch.zeros_like(second, memory_format=torch.preserve_format)
        return (
            filled,
            torch.nn.functional.gelu(second, approximate="tanh") + like,
            grid,
            scale * x.shape[0],
            None,
        )


@pytest.mark.parametrize("name", ["lenet", "resnet18"])
def test_models_survive_a_round(name: str) -> None:
    bundle = build(name)
    graph = trace(bundle.module, bundle.example_inputs)
    assert format_text(again(graph)) == format_text(graph)
    assert fingerprint(again(graph)) == fingerprint(graph)


def test_every_kind_of_argument_survives_a_round() -> None:
    graph = trace(Everything().eval(), (torch.randn(3, 4), torch.tensor(2.0)))
    copy = again(graph)
    assert format_text(copy) == format_text(graph)
    assert fingerprint(copy) == fingerprint(graph)
    inputs = [torch.randn(5, 4), torch.tensor(3.0)]
    torch.testing.assert_close(evaluate(copy, inputs), evaluate(graph, inputs))


@pytest.mark.parametrize("view", ["view", "_unsafe_view"])
def test_a_value_has_no_strides(view: str) -> None:
    """What torch could view, because it had just made it contiguous, may lie otherwise when it is read."""
    graph = parse(f"""x: f32[n0, 2, 3] = input()
transpose: f32[n0, 3, 2] = aten.transpose.int(x, 1, 2)
view: f32[n0, 6] = aten.{view}.default(transpose, [-1, 6])
return [view]
""")
    x = torch.randn(4, 2, 3)
    assert torch.equal(evaluate(graph, [x])[0], x.mT.reshape(4, 6))


BASE = """x: f32[n0, 4] = input()
w: f32[4] = tensor("w")
mul: f32[n0, 4] = aten.mul.Tensor(x, w)
add: f32[n0, 4] = aten.add.Tensor(mul, 1.0)
return [add]
"""


def test_text_is_what_one_expects() -> None:
    assert format_text(parse(BASE)) == BASE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.0", "1.5"),
        ("1.0", "1"),
        ("aten.add", "aten.sub"),
        ("mul, 1.0", "mul, x"),
        ("return [add]", "return [mul]"),
        ("return [add]", "return [add, add]"),
        ("x: f32[n0, 4]", "x: f32[3, 4]"),
        ("x: f32[n0, 4]", "x: f64[n0, 4]"),
        ("(x, w)", "(w, x)"),
    ],
)
def test_fingerprint_changes_with_what_matters(old: str, new: str) -> None:
    assert old in BASE
    assert fingerprint(parse(BASE.replace(old, new))) != fingerprint(parse(BASE))


def test_fingerprint_ignores_names() -> None:
    renamed = BASE.replace("mul:", "a:").replace("(mul", "(a").replace("add:", "b:").replace("[add]", "[b]")
    renamed = renamed.replace("x:", "input:").replace("(x", "(input").replace("n0", "batch")
    assert "mul:" not in renamed
    assert fingerprint(parse(renamed)) == fingerprint(parse(BASE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_fingerprint_sees_one_bit(dtype: torch.dtype) -> None:
    graph = parse(BASE)
    tensor = torch.arange(4).to(dtype)
    changed = tensor.clone()
    changed.view(torch.uint8)[5 % changed.view(torch.uint8).numel()] ^= 1
    before, after = (fingerprint(with_tensors(graph, {"w": found})) for found in (tensor, changed))
    assert before != after
    assert before == fingerprint(with_tensors(graph, {"w": tensor.clone()}))
    assert before != fingerprint(with_tensors(graph, {"w": tensor.view(4, 1)}))


def test_empty_tensors_have_a_fingerprint() -> None:
    empty = with_tensors(parse(BASE), {"w": torch.empty(0, 3, dtype=torch.bfloat16)})
    assert len(fingerprint(empty)) == 64


def body(line: str) -> str:
    return f"x: f32[2, 4] = input()\n{line}\nreturn [x]\n"


HOSTILE: dict[str, Callable[[Path], str]] = {
    "unknown operator": lambda path: body("y = aten.no_such_thing.default(x)"),
    "unknown namespace": lambda path: body("y = prims.add.default(x, x)"),
    "import": lambda path: body("import os"),
    "import inside": lambda path: body(f"y = __import__('os').mkdir({str(path)!r})"),
    "system call": lambda path: body(f"y = os.mkdir({str(path)!r})"),
    "dunder": lambda path: body("y = aten.__class__.mro()"),
    "dunder overload": lambda path: body("y = aten.add.__init__(x)"),
    "dunder argument": lambda path: body("y = aten.neg.default(x.__class__)"),
    "torch function": lambda path: body("y = aten.neg.default('torch.load')"),
    "library": lambda path: body(f"y = torch.ops.load_library({str(path)!r})"),
    "file": lambda path: body(f"y = aten.from_file.default({str(path)!r}, True, 4)"),
    "in place": lambda path: body("y = aten.add_.Tensor(x, x)"),
    "text": lambda path: body("y = aten.upper.default('a')"),
    "print": lambda path: body("y = aten._print.default('a')"),
    "lambda": lambda path: body("y = (lambda: x)()"),
    "comprehension": lambda path: body("y = aten.cat.default([z for z in [x]])"),
    "walrus": lambda path: body("y = aten.neg.default(z := x)"),
    "unknown value": lambda path: body("y = aten.neg.default(z)"),
    "memory": lambda path: body("y = size.mul([1], 1000000000000)"),
    "memory text": lambda path: body("y = size.mul('a', 1000000000000)"),
    "size of a tensor": lambda path: body("y = size.getitem(x, 0)"),
    "keywords": lambda path: body("y = aten.neg.default(**x)"),
    "star": lambda path: body("y = aten.neg.default(*x)"),
    "wrong arguments": lambda path: body("y = aten.conv2d.default(x, x, x, x)"),
    "missing tensor": lambda path: body('y = tensor("none")'),
    "no tensor": lambda path: body("y = tensor()"),
    "list of tensors": lambda path: body("y = tensor(['w'])"),
    "expression for a tensor": lambda path: body("y = tensor(f'{x}')"),
    "statement": lambda path: body("if x: pass"),
    "class": lambda path: body("class A: pass"),
    "deletion": lambda path: body("del x"),
    "no shape": lambda path: "x = input()\nreturn [x]",
    "no such type": lambda path: "x: f33[2] = input()\nreturn [x]",
    "negative size": lambda path: "x: f32[-2] = input()\nreturn [x]",
    "no return": lambda path: "x: f32[2] = input()\n",
    "not a list": lambda path: "x: f32[2] = input()\nreturn x",
    "after the end": lambda path: body("y = aten.neg.default(x)") + "z = aten.neg.default(x)\n",
    "two returns": lambda path: body("y = aten.neg.default(x)") + "return [y]\n",
    "too many inputs": lambda path: body("y: f32[2] = input()"),
    "nothing": lambda path: "",
    "not python": lambda path: "x: f32[2 = input(",
    "null byte": lambda path: "x\0",
    "deep list": lambda path: body(f"y = aten.neg.default({'[' * 5000}{']' * 5000})"),
    "deep sign": lambda path: body(f"y = aten.neg.default({'-' * 20000}1)"),
    "deep attribute": lambda path: body(f"y = aten{'.a' * 20000}(x)"),
    "deep call": lambda path: body(f"y = {'a(' * 150}{')' * 150}"),
    "surrogate": lambda path: body("y = aten.neg.default('\udcff')"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_text_is_refused_and_runs_nothing(attack: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(ArtifactError):
        parse(HOSTILE[attack](canary))
    assert not canary.exists()


def test_a_refusal_names_the_place() -> None:
    with pytest.raises(ArtifactError, match=r"unknown statement: aten\.no_such"):
        parse(body("y = aten.no_such.default(x)"))
    with pytest.raises(ArtifactError, match="line 2 of the graph text"):
        parse(body("y = aten.conv2d.default(x, x, x, x)"))


def test_functions_that_are_no_operators_cannot_be_written_down() -> None:
    draft = Draft(parse(BASE))
    add = draft.nodes[-2]
    with draft.fx.inserting_after(add):
        stranger = draft.fx.call_function(len, (add,))
    draft.fx.output_node().args = ([stranger],)
    with pytest.raises(GraphError, match="the graph calls"):
        format_text(draft.finish())


def test_a_spec_prints_short() -> None:
    assert str(TensorSpec(shape=(2, 3), dtype=torch.float32)) == "f32[2, 3]"
    assert isinstance(parse(BASE).fx, fx.Graph)
