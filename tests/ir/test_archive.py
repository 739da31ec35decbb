"""A `.pt2` file from a stranger runs none of his code: each door is tried with a canary."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompiler.errors import InputError
from qcompiler.ir import trace
from qcompiler.ir.archive import is_size

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "net.pt2"
    dynamic = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(2, 3),), dynamic_shapes=dynamic)
    torch.export.save(program, path, extra_files={"note.txt": "hello"})
    return path


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def edited(honest: Path, folder: Path, edit: Callable[[Members], None]) -> Path:
    with zipfile.ZipFile(honest) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(members)
    path = folder / "hostile.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{root}/{name}", content)
    return path


def program(members: Members, change: Callable[[Any], None]) -> None:
    content = json.loads(members["models/model.json"])
    change(content)
    members["models/model.json"] = json.dumps(content).encode()


def payload(members: Members, kind: str, change: Callable[[Any], None]) -> None:
    name = f"data/{kind}/model_{kind}_config.json"
    content = json.loads(members[name])
    change(content["config"])
    members[name] = json.dumps(content).encode()


def set_size(content: Any, text: str) -> None:
    for tensor in content["graph_module"]["graph"]["tensor_values"].values():
        for size in tensor["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def attacks(canary: Path) -> dict[str, Callable[[Members], None]]:
    code = f"__import__('os').mkdir({str(canary)!r})"

    def pickled_inputs(members: Members) -> None:
        members["data/sample_inputs/model.pt"] = saved(Canary(canary))

    def pickled_weight(members: Members) -> None:
        payload(members, "weights", lambda config: config["weight"].update(use_pickle=True))
        members["data/weights/weight_0"] = saved(Canary(canary))

    def opaque_constant(members: Members) -> None:
        def add(config: Any) -> None:
            config["c"] = {
                "path_name": "opaque_obj_0",
                "is_param": False,
                "use_pickle": True,
                "tensor_meta": None,
            }

        payload(members, "constants", add)
        members["data/constants/opaque_obj_0"] = pickle.dumps(Canary(canary))

    def legacy_weights(members: Members) -> None:
        members["data/weights/model.pt"] = saved(Canary(canary))

    def compiled_code(members: Members) -> None:
        members["data/aotinductor/model/a.so"] = b"\x7fELF"

    def size(members: Members) -> None:
        program(members, lambda content: set_size(content, code))

    def guards(members: Members) -> None:
        program(members, lambda content: content.update(guards_code=[code]))

    def operator(members: Members) -> None:
        def change(content: Any) -> None:
            content["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.mkdir"

        program(members, change)

    def file_operator(members: Members) -> None:
        def change(content: Any) -> None:
            content["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

        program(members, change)

    def enum(members: Members) -> None:
        def change(content: Any) -> None:
            context = json.dumps([{"__enum__": True, "fqn": "antigravity:geohash", "name": "x"}])
            spec = [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
            content["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)

        program(members, change)

    return {
        "pickled inputs": pickled_inputs,
        "pickled weight": pickled_weight,
        "opaque constant": opaque_constant,
        "legacy weights": legacy_weights,
        "compiled code": compiled_code,
        "size": size,
        "guards": guards,
        "operator": operator,
        "file operator": file_operator,
        "enum": enum,
    }


def test_an_honest_file_is_read(honest: Path, tmp_path: Path) -> None:
    assert trace(honest).signature.inputs == ("input_1",)
    assert trace(edited(honest, tmp_path, lambda members: None)).signature.inputs == ("input_1",)


@pytest.mark.parametrize("attack", [name for name in attacks(Path()) if name != "guards"])
def test_hostile_files_are_refused(attack: str, honest: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = edited(honest, tmp_path, attacks(canary)[attack])
    with pytest.raises(InputError, match="is refused at"):
        trace(path)
    assert not canary.exists()


def test_guards_are_dropped_unread(honest: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    assert trace(edited(honest, tmp_path, attacks(canary)["guards"])).results
    assert not canary.exists()


@pytest.mark.parametrize("attack", ["pickled inputs", "size"])
def test_without_the_check_torch_would_run_the_code(attack: str, honest: Path, tmp_path: Path) -> None:
    """So the canaries can die, and the tests above can fail."""
    canary = tmp_path / "canary"
    path = edited(honest, tmp_path, attacks(canary)[attack])
    with pytest.raises(Exception):  # noqa: B017  (what it raises afterwards is torch's affair)
        torch.export.load(path)
    assert canary.exists()


def test_members_that_are_there_twice_are_refused(honest: Path, tmp_path: Path) -> None:
    def double(members: Members) -> None:
        members["MODELS/model.json"] = members["models/model.json"]

    with pytest.raises(InputError, match="is refused"):
        trace(edited(honest, tmp_path, double))


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", pickle.dumps({"a": 1}), saved({"weight": torch.ones(2)})]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a program"):
        trace(path)


def test_a_missing_file_and_a_broken_one(honest: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        trace(tmp_path / "none.pt2")
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(honest.read_bytes()[:-200])
    with pytest.raises(InputError, match="not a program"):
        trace(cut)


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("Symbol('s77', positive=True, integer=True)", True),
        ("Mul(Integer(4), FloorDiv(Symbol('s0', integer=True), Integer(2)))", True),
        ("8*s77 + 1", True),
        ("__import__('os')", False),
        ("s0.__class__", False),
        ("(lambda: 1)()", False),
        ("sympify('1')", False),
        ("Symbol('__import__(1)')", False),
        ("[x for x in (1,)]", False),
        ("s0; s1", False),
    ],
)
def test_sizes(expression: str, allowed: bool) -> None:
    assert is_size(expression) == allowed
