"""Exports are shortened, and nobody's translations get into another's."""

import operator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _fx_passes, _registration

from qcompiler.backends.ort import exporter
from qcompiler.backends.ort.exporter import held, shortened

Registry = _registration.ONNXRegistry


def read(opset: int) -> _registration.ONNXRegistry:
    with shortened():
        return Registry.from_torchlib(opset_version=opset)


def prepared(module: nn.Module, registry: _registration.ONNXRegistry) -> tuple[ExportedProgram, bool]:
    """What would be translated, and whether that is the program as it was."""
    program = torch.export.export(module.eval(), (torch.randn(2, 8),))
    with shortened():
        found = _fx_passes.decompose_with_registry(program, registry)
    return found, found is program


class Distant(nn.Module):
    """A product, and an op that has no translation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.gelu(self.linear(x)).reshape(-1, 4)
        return nn.functional.pairwise_distance(y, y + 1)


def test_source_is_read_once_for_each_opset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "held", {})
    original, asked = Registry.from_torchlib.__func__, []  # type: ignore[attr-defined]

    def counted(cls: type[Registry], opset_version: int) -> _registration.ONNXRegistry:
        asked.append(opset_version)
        found: _registration.ONNXRegistry = original(cls, opset_version)
        return found

    monkeypatch.setattr(Registry, "from_torchlib", classmethod(counted))
    found = [read(opset) for opset in (20, 21, 21, 20)]
    assert asked == [20, 21]
    assert [each.opset_version for each in found] == [20, 21, 21, 20]


def test_ops_that_torch_learns_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "held", {})
    read(21)
    ((before, first),) = exporter.held.values()
    with torch.library._scoped_library("qcompiler_tests", "FRAGMENT") as library:
        library.define("learnt(Tensor x) -> Tensor")
        read(21)
        ((after, second),) = exporter.held.values()
    assert after > before and second is not first


def test_it_says_what_torch_would_say() -> None:
    ours, theirs = read(21), Registry.from_torchlib(opset_version=21)
    assert ours.functions.keys() == theirs.functions.keys()
    assert all(
        [each.onnx_function for each in found] == [each.onnx_function for each in theirs.functions[target]]
        for target, found in ours.functions.items()
    )


def test_what_one_export_registers_no_other_finds() -> None:
    first = read(21)
    target = next(iter(first.functions))
    first.functions[target].clear()
    del first.functions[next(reversed(first.functions))]
    assert read(21).functions.keys() != first.functions.keys()
    assert read(21).functions[target]
    assert all(each is not first for _, each in held.values())


def test_a_program_whose_ops_have_translations_stays() -> None:
    assert prepared(nn.Sequential(nn.Linear(8, 8), nn.GELU()), read(21))[1]


def test_an_op_without_one_is_taken_apart() -> None:
    registry = read(21)
    found, is_the_same = prepared(Distant(), registry)
    assert not is_the_same
    called = {node.target for node in found.graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.pairwise_distance.default not in called
    assert {exporter.key_of(target) for target in called} <= {*registry.functions, operator.getitem}


@pytest.mark.parametrize("module", [nn.Sequential(nn.Linear(8, 8), nn.GELU()), Distant()])
def test_the_model_is_the_one_that_torch_writes(module: nn.Module) -> None:
    program = torch.export.export(
        module.eval(), (torch.randn(6, 8),), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )

    def written() -> list[tuple[str, list[str]]]:
        found = torch.onnx.export(program, (), dynamo=True, opset_version=21, verbose=False)
        assert found is not None
        return [(node.op_type, [str(y.shape) for y in node.outputs]) for node in found.model.graph]

    theirs = written()
    with shortened():
        assert written() == theirs


def test_a_branch_without_a_translation_is_taken_apart() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            def far(x: Tensor) -> Tensor:
                return nn.functional.pairwise_distance(x, x + 1)

            found: Tensor = torch.cond(x.sum() > 0, far, lambda x: x.sum(1), (x,))
            return found

    assert not prepared(Branches(), read(21))[1]


def test_other_threads_export_as_torch_does() -> None:
    program, asked = torch.export.export(nn.Linear(8, 8), (torch.randn(2, 8),)), read(21)
    with shortened(), ThreadPoolExecutor(1) as other:
        theirs = other.submit(_fx_passes.decompose_with_registry, program, asked).result()
        assert theirs is not program
        assert _fx_passes.decompose_with_registry(program, asked) is program


def test_the_exporter_is_everybody_s_again_afterwards() -> None:
    def now() -> tuple[object, object]:
        return vars(Registry)["from_torchlib"], _fx_passes.decompose_with_registry

    before = now()
    with pytest.raises(ZeroDivisionError), shortened():
        assert all(one is not other for one, other in zip(before, now(), strict=True))
        raise ZeroDivisionError
    assert before == now()


def test_a_torch_without_those_modules_exports_as_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "EXPORTER", "torch.onnx.elsewhere")
    before = vars(Registry)["from_torchlib"], _fx_passes.decompose_with_registry
    with shortened():
        assert before == (vars(Registry)["from_torchlib"], _fx_passes.decompose_with_registry)
        assert (
            torch.onnx.export(nn.Linear(8, 8).eval(), (torch.randn(2, 8),), dynamo=True, verbose=False)
            is not None
        )
