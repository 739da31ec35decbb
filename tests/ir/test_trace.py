"""From users' models to graphs: every way to give a model, a call and a batch size, and every refusal."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError, TraceError
from qcompiler.ir import Graph, evaluate, flatten_inputs, format_text, source_line, spec, trace
from qcompiler.ir.spec import short_path


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return (a - b) * scale


def of(function: Callable[..., Any]) -> nn.Module:
    return Function(function).eval()


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ).eval()


def same(model: Callable[..., Any], graph: Graph, *args: Any, **kwargs: Any) -> None:
    """The graph gives what the model gives, in the same arrangement."""
    found = pytree.tree_unflatten(
        evaluate(graph, flatten_inputs(graph, args, kwargs)), graph.signature.out_spec
    )
    with torch.no_grad():
        torch.testing.assert_close(found, model(*args, **kwargs))


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return net()


def x(batch: int) -> Tensor:
    return torch.randn(batch, 3, 4, 4)


def given_as(kind: str, model: nn.Module, folder: Path) -> Any:
    program = torch.export.export(model, (x(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, folder / "net.pt2")
    return {
        "module": model,
        "graph module": fx.symbolic_trace(model),
        "program": program,
        "path": folder / "net.pt2",
        "name": str(folder / "net.pt2"),
    }[kind]


@pytest.mark.parametrize("kind", ["module", "graph module", "program", "path", "name"])
def test_every_kind_of_model_keeps_a_dynamic_batch(kind: str, model: nn.Module, tmp_path: Path) -> None:
    graph = trace(given_as(kind, model, tmp_path), x(1) if "module" in kind else None)
    assert graph.stage == "traced" and graph.notes == ()
    for batch in (1, 3, 5):
        same(model, graph, x(batch))


def test_every_value_is_typed_and_knows_its_source() -> None:
    graph = trace(Two().eval(), (torch.ones(2, 3), torch.ones(2, 3)))
    assert all(spec(node) is not None for node in graph.nodes if node.op != "output")
    line = inspect.getsourcelines(Two.forward)[1] + 1
    (sub,) = [node for node in graph.nodes if "sub" in node.name]
    assert source_line(sub) == f"{short_path(__file__)}:{line}"


@pytest.mark.parametrize(
    "example",
    [
        (torch.ones(1, 3), torch.ones(1, 3)),
        [torch.ones(2, 3), torch.ones(2, 3)],
        {"a": torch.ones(2, 3), "b": torch.ones(2, 3)},
        {"b": torch.ones(1, 3), "a": torch.ones(1, 3)},
    ],
    ids=["tuple", "list", "dict", "dict in another order"],
)
def test_arguments_by_position_and_by_name(example: Any) -> None:
    model = Two().eval()
    graph = trace(model, example)
    first, second = torch.randn(3, 3), torch.randn(3, 3)
    same(model, graph, b=second, a=first)
    if isinstance(example, dict):  # their positions are not known, and may not be guessed
        with pytest.raises(InputError, match="arranged otherwise"):
            flatten_inputs(graph, (first, second))
    else:
        same(model, graph, first, second)
        same(model, graph, first, b=second)
    with pytest.raises(InputError, match="2 inputs"):
        flatten_inputs(graph, (first,))
    with pytest.raises(InputError, match="2 inputs"):
        flatten_inputs(graph, (first,), {"c": second})


def test_nested_inputs_in_any_order_of_keys() -> None:
    model = of(lambda given: given["left"] - 2 * given["right"][0])
    graph = trace(model, ({"left": torch.ones(2, 3), "right": [torch.ones(2, 3)]},))
    same(model, graph, {"right": [torch.randn(4, 3)], "left": torch.randn(4, 3)})


@pytest.mark.parametrize(
    "function",
    [
        lambda a: (a + 1, a * 2),
        lambda a: {"sum": a + 1, "nested": (a, [a * 2, {"deep": -a}])},
        lambda a: (a, None, 3, a + 1),
        lambda a: [a, a],
    ],
    ids=["tuple", "nested", "constants", "twice"],
)
def test_arrangement_of_outputs(function: Callable[..., Any]) -> None:
    model = of(function)
    same(model, trace(model, torch.ones(1, 3)), torch.randn(3, 3))


def test_unused_inputs_returned_constants_and_tied_weights() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("table", torch.arange(3.0))

        def forward(self, ids: Tensor, unused: Tensor) -> tuple[Any, ...]:
            return self.head(self.embed(ids)), self.table

    model = Odd().eval()
    graph = trace(model, (torch.tensor([[1, 2]]), torch.ones(1, 7)))
    assert graph.signature.inputs == ("ids", "unused")
    same(model, graph, torch.tensor([[1, 2], [0, 4], [3, 3]]), torch.ones(3, 7))


def test_relu_in_place_becomes_a_value() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)).eval()
    graph = trace(model, torch.ones(1, 3))
    assert "relu_" not in format_text(graph)
    same(model, graph, torch.randn(3, 3))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "function",
    [
        lambda a: torch.stack([row * 2 for row in a]),
        lambda a: a.reshape(int(a.shape[0]), -1).sum(1),
    ],
    ids=["loop", "int"],
)
def test_a_model_that_fixes_its_batch_runs_at_the_shape_of_the_example(function: Any, batch: int) -> None:
    model = of(function)
    example = torch.randn(batch, 4, 3)
    graph = trace(model, example)
    same(model, graph, example)
    fixed = isinstance(spec(graph.inputs[0]).shape[0], int)  # type: ignore[union-attr]
    assert fixed == bool(graph.notes)
    if fixed:
        assert "fixes its batch size" in str(graph.notes[0])
        with pytest.raises(InputError, match="traced for"):
            flatten_inputs(graph, (torch.randn(batch + 1, 4, 3),))


def test_a_call_is_checked_whatever_was_called_before() -> None:
    graph = trace(nn.Linear(4, 3).eval(), torch.randn(2, 4))
    for _ in range(2):
        flatten_inputs(graph, (torch.randn(5, 4),))
        for wrong in (torch.randn(5, 3), torch.randn(5, 4).double(), [[1.0] * 4]):
            with pytest.raises(InputError):
                flatten_inputs(graph, (wrong,))


def refused(model: Any, example: Any, kind: type[Exception] = TraceError) -> str:
    with pytest.raises(kind) as caught:
        trace(model, example)
    return str(caught.value)


def test_training_mode_is_refused() -> None:
    part_trains = net()
    part_trains[1].train()
    assert "training mode (1)" in refused(part_trains, x(1), InputError)
    assert "training mode (the model itself)" in refused(net().train(), x(1), InputError)


class Branches(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        if a.sum() > 0:
            return a
        return -a


def test_control_flow_on_values_names_the_line() -> None:
    line = inspect.getsourcelines(Branches.forward)[1] + 1
    message = refused(Branches().eval(), torch.ones(2, 3))
    assert f"{__file__}:{line} (if a.sum() > 0:)" in message
    assert "torch.where" in message


class Counts(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, a: Tensor) -> Tensor:
        self.calls += 1
        return a * self.calls


def test_writing_to_state_or_inputs_is_refused() -> None:
    assert "writes to 'calls'" in refused(Counts().eval(), torch.ones(2, 3))
    example = -torch.ones(2, 3)
    assert "writes to" in refused(of(lambda a: a.relu_()), example)
    assert torch.equal(example, -torch.ones(2, 3))


def test_inputs_that_the_model_cannot_take() -> None:
    message = refused(net(), torch.ones(1, 5, 4, 4), InputError)
    assert "[1, 5, 4, 4]" in message and "expected input" in message
    assert "missing" in refused(net(), None, InputError)
    assert "set" in refused(net(), {1, 2}, InputError)
    assert "cannot trace a function" in refused(lambda a: a, x(1), InputError)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (torch.ones(2, 3, 4), "shape [2, 3, 4]"),
        (torch.ones(2, 3, 4, 5), "shape [2, 3, 4, 5]"),
        (torch.ones(2, 3, 4, 4, dtype=torch.float64), "torch.float64"),
        (3.0, "is a float"),
    ],
)
def test_calls_are_checked(model: nn.Module, given: Any, complaint: str) -> None:
    graph = trace(model, x(1))
    with pytest.raises(InputError) as caught:
        flatten_inputs(graph, (given,))
    assert (complaint in str(caught.value) and "traced for" in str(caught.value)) or "not a tensor" in str(
        caught.value
    )


def test_named_axes_take_any_size() -> None:
    def doubled(tokens: Tensor, table: Tensor) -> Tensor:
        return table[tokens + torch.arange(tokens.shape[1])]

    model, table = of(doubled), torch.randn(50, 4)

    class Named(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return doubled(tokens, table)

    graph = trace(Named().eval(), (torch.zeros(1, 3, dtype=torch.int64),), dynamic={"tokens": (1,)})
    found = spec(graph.inputs[0])
    assert found is not None and not any(isinstance(size, int) for size in found.shape)
    for shape in ((1, 3), (2, 7), (3, 1)):
        same(lambda tokens: model(tokens, table), graph, torch.ones(shape, dtype=torch.int64))


class TwoColumns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(2, 3)


@pytest.mark.parametrize(
    ("model", "inputs", "axes", "error", "sentence"),
    [
        (TwoColumns(), (torch.ones(3, 2),), {"y": (1,)}, InputError, "no input 'y' to be dynamic"),
        (TwoColumns(), (torch.ones(3, 2),), {"x": (2,)}, InputError, r"the example has \[3, 2\]"),
        (nn.Identity(), (torch.ones(3, 1),), {"input": (1,)}, InputError, r"the example has \[3, 1\]"),
        (TwoColumns(), (torch.ones(3, 2),), {"x": (1,)}, TraceError, "the model fixes its size to 2"),
    ],
)
def test_axes_that_cannot_be_dynamic_are_refused(
    model: nn.Module, inputs: Any, axes: dict[str, tuple[int, ...]], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        trace(model.eval(), inputs, dynamic=axes)


def test_an_exported_program_takes_no_axes() -> None:
    program = torch.export.export(TwoColumns(), (torch.ones(3, 2),))
    with pytest.raises(InputError, match="an exported program cannot get dynamic axes"):
        trace(program, dynamic={"x": (0,)})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_is_refused(kind: torch.dtype) -> None:
    model = nn.Linear(2, 3).eval().to(kind)
    with pytest.raises(InputError, match=r"parameter 'weight'.*call model.float\(\) first"):
        trace(model, (torch.ones(1, 2, dtype=kind),))
