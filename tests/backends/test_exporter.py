"""Exports are shortened, and nobody's translations get into another's."""

import operator

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
    assert all(each is not first for each in held.values())


def test_a_program_whose_ops_have_translations_stays() -> None:
    assert prepared(nn.Sequential(nn.Linear(8, 8), nn.GELU()), read(21))[1]


def test_an_op_without_one_is_taken_apart() -> None:
    class Distant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.pairwise_distance(x, x + 1)

    registry = read(21)
    found, is_the_same = prepared(Distant(), registry)
    assert not is_the_same
    called = {node.target for node in found.graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.pairwise_distance.default not in called
    assert {exporter.key_of(target) for target in called} <= {*registry.functions, operator.getitem}


def test_the_exporter_is_everybody_s_again_afterwards() -> None:
    def now() -> tuple[object, object]:
        return vars(Registry)["from_torchlib"], _fx_passes.decompose_with_registry

    before = now()
    with pytest.raises(ZeroDivisionError), shortened():
        assert all(one is not other for one, other in zip(before, now(), strict=True))
        raise ZeroDivisionError
    assert before == now()


def test_a_torch_without_those_functions_exports_as_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_registration, "ONNXRegistry")
    monkeypatch.delattr(_fx_passes, "decompose_with_registry")
    with shortened():
        assert not hasattr(_fx_passes, "decompose_with_registry")
