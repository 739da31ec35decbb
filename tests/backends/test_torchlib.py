"""The exporter's translations are read once, and nobody's own get into another's."""

import pytest
from torch.onnx._internal.exporter import _registration

from qcompiler.backends.ort import torchlib
from qcompiler.backends.ort.torchlib import held, read_once

Registry = _registration.ONNXRegistry


def read(opset: int) -> _registration.ONNXRegistry:
    with read_once():
        return Registry.from_torchlib(opset_version=opset)


def test_source_is_read_once_for_each_opset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchlib, "held", {})
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
    target = next(iter(read(21).functions))
    first = read(21)
    first.functions[target].clear()
    del first.functions[next(reversed(first.functions))]
    assert read(21).functions.keys() != first.functions.keys()
    assert read(21).functions[target]
    assert all(each is not first for each in held.values())


def test_the_exporter_is_everybody_s_again_afterwards() -> None:
    before = vars(Registry)["from_torchlib"]
    with pytest.raises(ZeroDivisionError), read_once():
        assert vars(Registry)["from_torchlib"] is not before
        raise ZeroDivisionError
    assert vars(Registry)["from_torchlib"] is before


def test_a_torch_without_the_registry_exports_as_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_registration, "ONNXRegistry")
    with read_once():
        pass
