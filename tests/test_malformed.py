"""Malformed inputs: each is refused in one sentence that names what is wrong, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typer.testing import CliRunner

import qcompiler as qc
from qcompiler.cli import app
from qcompiler.errors import (
    ArtifactError,
    CalibrationError,
    InputError,
    LoweringError,
    PlanError,
    QCompilerError,
    RecipeError,
    TargetError,
    TraceError,
)

ZOO = """
import torch
from torch import nn

class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

def mlp():
    torch.manual_seed(0)
    return Mlp().eval(), (torch.randn(2, 32),)

def training():
    return Mlp(), (torch.randn(2, 32),)

class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the branch
            return x + 1
        return x - 1

def branch():
    return Branch().eval(), (torch.randn(2, 32),)

def raising():
    raise OSError("the weights are elsewhere")

def number():
    return 3

def bare():
    return Mlp().eval()

def lazy():
    return Mlp().eval(), (torch.randn(2, 32),), None, "accuracy"

def poisoned():
    return Mlp().eval(), (torch.randn(2, 32),), [(torch.full((2, 32), float("nan")),)]

answer = 42
"""


# ---------------------------------------------------------------- models


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


class Log(nn.Module):
    """Its second layer reads NaN where the first one's output is negative, inf where it is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.log(x))  # type: ignore[no-any-return]


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the branch
            return x + 1
        return x - 1


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the tokens are out of range")


def rows(count: int = 2, width: int = 32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def compile_mlp(**changes: Any) -> qc.Compiled:
    """The reference backend: nothing here is about an engine's speed."""
    options: dict[str, Any] = {"calibration": [rows()], "progress": False, "backend": "reference"}
    example = changes.pop("example", rows())
    return qc.compile(changes.pop("model", Mlp().eval()), example, **options | changes)


@pytest.fixture(scope="module")
def compiled() -> qc.Compiled:
    return compile_mlp()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model.qc"
    compile_mlp(backend="ort", threads=1).save(folder)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "mlp.pt2"
    torch.export.save(torch.export.export(Mlp().eval(), (rows(),)), path)
    return path


# ---------------------------------------------------------------- what must hold for each


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; temporary files are made in a folder of its own, which must end empty."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COLUMNS", "60")  # a narrow terminal breaks no message
    yield work
    gc.collect()
    assert listing(temporary) == {}


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones among them, with its content; folders end in a slash."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@contextlib.contextmanager
def refusal(error: type[QCompilerError], *says: str) -> Iterator[None]:
    """The body raises exactly this error, as one complete line that contains all the words."""
    with pytest.raises(QCompilerError) as caught:
        yield
    found = caught.value
    assert type(found) is error, f"{type(found).__name__}: {found}"
    assert found.what and (found.fix or found.why)
    text = str(found)
    assert "\n" not in text and "Traceback" not in text and len(text) < 900
    for words in says:
        assert words in text, text


@dataclass(frozen=True)
class Case:
    """A call that must be refused; `prepare` puts into the folder what it needs."""

    name: str
    call: Callable[[], object]
    error: type[QCompilerError]
    says: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda _: None


def ids(case: Any) -> str:
    return str(case.name)


# ---------------------------------------------------------------- models, inputs, calibration


INPUT = [
    Case("no example", lambda: compile_mlp(example=None), InputError, ("example inputs",)),
    Case("example is a string", lambda: compile_mlp(example="x"), InputError, ("str",)),
    Case("example is a number", lambda: compile_mlp(example=3), InputError, ("int",)),
    Case("example of lists", lambda: compile_mlp(example=([1.0, 2.0],)), InputError, ("example",)),
    Case("example of wrong width", lambda: compile_mlp(example=rows(2, 31)), InputError, ("[2, 31]",)),
    Case("example without rows", lambda: compile_mlp(example=rows(0)), InputError, ("empty",)),
    Case("example with odd keyword", lambda: compile_mlp(example={"odd": rows()}), InputError, ("odd",)),
    Case("model fails", lambda: compile_mlp(model=Failing().eval()), InputError, ("the tokens are out of range", "test_malformed.py:")),
    Case("model in training", lambda: compile_mlp(model=Mlp()), InputError, ("training mode",)),
    Case("model is a function", lambda: compile_mlp(model=torch.relu), InputError, ("nn.Module",)),
    Case("model is None", lambda: compile_mlp(model=None), InputError, ("NoneType",)),
    Case("model is a class", lambda: compile_mlp(model=Mlp), InputError, ("nn.Module",)),
    Case("model writes a buffer", lambda: compile_mlp(model=Counter().eval()), TraceError, ("'calls'",)),
    Case("model branches on data", lambda: compile_mlp(model=Branch().eval()), TraceError, ("test_malformed.py:", "if x.sum() > 0")),
    Case("calibration is a string", lambda: compile_mlp(calibration="images"), CalibrationError, ("str",)),
    Case("calibration is bytes", lambda: compile_mlp(calibration=b"images"), CalibrationError, ("bytes",)),
    Case("calibration is a tensor", lambda: compile_mlp(calibration=rows()), CalibrationError, ("Tensor",)),
    Case("calibration is a number", lambda: compile_mlp(calibration=5), CalibrationError, ("int",)),
    Case("calibration is empty", lambda: compile_mlp(calibration=[]), CalibrationError, ("empty",)),
    Case("calibration generator is empty", lambda: compile_mlp(calibration=iter(())), CalibrationError, ("empty",)),
    Case("calibration batch is empty", lambda: compile_mlp(calibration=[rows(), rows(0)]), CalibrationError, ("input", "batch 2")),
    Case("calibration of strings", lambda: compile_mlp(calibration=["a"]), InputError, ("str",)),
    Case("calibration of pairs", lambda: compile_mlp(calibration=[(rows(), rows())]), InputError, ("the call has 2",)),
    Case("calibration of wrong names", lambda: compile_mlp(calibration=[{"odd": rows()}]), InputError, ("arranged otherwise",)),
    Case("calibration of wrong width", lambda: compile_mlp(calibration=[rows(), rows(2, 5)]), InputError, ("[2, 5]",)),
    Case("calibration of wrong dtype", lambda: compile_mlp(calibration=[rows().double()]), InputError, ("float64",)),
    Case("calibration is one batch as dict", lambda: compile_mlp(calibration={"input": rows()}), CalibrationError, ("dict",)),
    Case("NaN in the data", lambda: compile_mlp(calibration=[rows(), rows() * float("nan")]), CalibrationError, ("'input'", "batch 2", "NaN")),
    Case("inf in the data", lambda: compile_mlp(calibration=[rows() / 0]), CalibrationError, ("'input'", "batch 1", "inf")),
    Case("NaN inside", lambda: compile_mlp(model=Log().eval(), example=rows().abs()), CalibrationError, ("log", "NaN", "batch 1")),
    Case("inf inside", lambda: compile_mlp(model=Log().eval(), example=rows().abs(), calibration=[rows() * 0]), CalibrationError, ("log", "inf", "batch 1")),
]  # fmt: skip


RECIPE = [
    Case("unknown recipe", lambda: compile_mlp(recipe="int9"), RecipeError, ("'int9'",)),
    Case("recipe is a number", lambda: compile_mlp(recipe=8), RecipeError, ("'8'",)),
    Case("unknown key", lambda: compile_mlp(recipe={"wieghts": "int8"}), RecipeError, ("'wieghts'",)),
    Case("unknown base", lambda: compile_mlp(recipe={"base": "int9"}), RecipeError, ("'int9'",)),
    Case("unknown observer", lambda: compile_mlp(recipe={"observers": ["median"]}), RecipeError, ("'median'",)),
    Case("no observer", lambda: compile_mlp(recipe={"observers": []}), RecipeError, ("observer",)),
    Case("observers as a word", lambda: compile_mlp(recipe={"observers": "minmax"}), RecipeError, ("observers", "minmax")),
    Case("unknown weight observer", lambda: compile_mlp(recipe={"weight_observer": "max"}), RecipeError, ("'max'",)),
    Case("unknown format", lambda: compile_mlp(recipe={"weights": "int8x"}), RecipeError, ("int8x",)),
    Case("format is a number", lambda: compile_mlp(recipe={"activations": 8}), RecipeError, ("activations is 8",)),
    Case("group size is a word", lambda: compile_mlp(recipe={"group_size": "many"}), RecipeError, ("group_size is 'many'",)),
    Case("group size is negative", lambda: compile_mlp(recipe={"group_size": -4}), RecipeError, ("group_size is -4",)),
    Case("smooth is a word", lambda: compile_mlp(recipe={"smooth": "much"}), RecipeError, ("smooth is 'much'",)),
    Case("smooth is too large", lambda: compile_mlp(recipe={"smooth": 2.0}), RecipeError, ("smooth is 2.0",)),
    Case("dynamic is a word", lambda: compile_mlp(recipe={"dynamic": "maybe"}), RecipeError, ("dynamic is 'maybe'",)),
    Case("overrides are a number", lambda: compile_mlp(recipe={"overrides": 3}), RecipeError, ("overrides",)),
    Case("override without pattern", lambda: compile_mlp(recipe={"overrides": [{"weights": None}]}), RecipeError, ("override", "pattern")),
    Case("override is a word", lambda: compile_mlp(recipe={"overrides": ["0"]}), RecipeError, ("override is '0'",)),
    Case("override of unknown key", lambda: compile_mlp(recipe={"overrides": [{"pattern": "0", "bits": 4}]}), RecipeError, ("'bits'", "'0'")),
    Case("override of unknown format", lambda: compile_mlp(recipe={"overrides": [{"pattern": "0", "weights": "int8x"}]}), RecipeError, ("int8x",)),
    Case("override of wrong type", lambda: compile_mlp(recipe={"overrides": [{"pattern": "0", "group_size": "x"}]}), RecipeError, ("group_size is 'x'",)),
    Case("override without match", lambda: compile_mlp(recipe={"overrides": [{"pattern": "layer9.*", "weights": None}]}), RecipeError, ("'layer9.*'", "matches no layer")),
    Case("recipe file is missing", lambda: compile_mlp(recipe="none.json"), RecipeError, ("none.json",)),
    Case("recipe file is broken", lambda: compile_mlp(recipe="r.json"), RecipeError, ("r.json",), lambda place: (place / "r.json").write_text("{")),
    Case("recipe file is binary", lambda: compile_mlp(recipe="r.json"), RecipeError, ("r.json",), lambda place: (place / "r.json").write_bytes(b"\xff\xfe\x00")),
    Case("recipe file holds a list", lambda: compile_mlp(recipe="r.json"), RecipeError, ("r.json", "object"), lambda place: (place / "r.json").write_text("[1]")),
    Case("recipe file is a folder", lambda: compile_mlp(recipe="r.json"), RecipeError, ("r.json",), lambda place: (place / "r.json").mkdir()),
    Case("unknown target", lambda: compile_mlp(target="toaster"), TargetError, ("'toaster'",)),
    Case("target is a number", lambda: compile_mlp(target=3), TargetError, ("3",)),
    Case("unknown backend", lambda: compile_mlp(backend="tensorrt"), LoweringError, ("'tensorrt'",)),
    Case("group size does not divide", lambda: compile_mlp(recipe={"base": "w4a16", "group_size": 7}), PlanError, ("7", "32", "0/linear")),
    Case("no kernel for the weights", lambda: compile_mlp(recipe={"base": "w4a16", "weights": "uint4"}), PlanError, ("uint4", "0/linear")),
    Case("target lacks the format", lambda: compile_mlp(recipe={"weights": "int7"}), TargetError, ("int7", "cpu")),
]  # fmt: skip


def export(path: str, **options: Any) -> object:
    return qc.export_onnx(Mlp().eval(), rows(), path, **options)


PATHS = [
    Case("export into nowhere", lambda: export("none/x.onnx"), ArtifactError, ("none",)),
    Case("export onto a folder", lambda: export("x.onnx"), ArtifactError, ("x.onnx", "folder"), lambda place: (place / "x.onnx").mkdir()),
    Case("export below a file", lambda: export("file/x.onnx"), ArtifactError, ("file",), lambda place: (place / "file").write_text("mine")),
    Case("opset too low", lambda: export("x.onnx", opset=7), LoweringError, ("opset 7",)),
    Case("opset too high", lambda: export("x.onnx", opset=99), LoweringError, ("opset 99",)),
    Case("opset lacks the format", lambda: export("x.onnx", opset=18, recipe={"base": "w4a16", "group_size": 16}), LoweringError, ("opset 18", "int4")),
    Case("load from nowhere", lambda: qc.load("none"), ArtifactError, ("none",)),
    Case("load from an empty folder", lambda: qc.load("."), ArtifactError, ("manifest.json",)),
    Case("load from a file", lambda: qc.load("file"), ArtifactError, ("file",), lambda place: (place / "file").write_text("mine")),
    Case("no such program", lambda: qc.compile("none.pt2", progress=False), InputError, ("none.pt2",)),
    Case("program is text", lambda: qc.compile("x.pt2", progress=False), InputError, ("x.pt2",), lambda place: (place / "x.pt2").write_text("mine")),
    Case("program is a folder", lambda: qc.compile("x.pt2", progress=False), InputError, ("x.pt2",), lambda place: (place / "x.pt2").mkdir()),
]  # fmt: skip


@pytest.mark.parametrize("case", [*INPUT, *RECIPE, *PATHS], ids=ids)
def test_what_is_malformed_is_refused(case: Case, place: Path) -> None:
    case.prepare(place)
    before = listing(place)
    with refusal(case.error, *case.says):
        case.call()
    assert listing(place) == before


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((rows()[0],), {}, "shape [32]"),
        ((rows(2, 31),), {}, "shape [2, 31]"),
        ((rows()[None],), {}, "shape [1, 2, 32]"),
        ((rows().double(),), {}, "float64"),
        ((rows().int(),), {}, "int32"),
        (("images",), {}, "str"),
        ((rows().numpy(),), {}, "ndarray"),
        ((None,), {}, "NoneType"),
        (([rows()],), {}, "arranged otherwise"),
        (({"input": rows()},), {}, "arranged otherwise"),
        ((), {}, "the call has 0"),
        ((rows(), rows()), {}, "the call has 2"),
        ((), {"odd": rows()}, "(input)"),
        ((rows(),), {"odd": 1}, "(input)"),
    ],
)
def test_a_call_of_another_form_is_refused(
    compiled: qc.Compiled, args: tuple[Any, ...], kwargs: dict[str, Any], says: str
) -> None:
    with refusal(InputError, says):
        compiled(*args, **kwargs)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("what", ["file", "foreign folder", "below a file"])
def test_nothing_foreign_is_overwritten(compiled: qc.Compiled, place: Path, what: str) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("years")
    target = {"file": "mine/thesis.txt", "foreign folder": "mine", "below a file": "mine/thesis.txt/x"}[what]
    before = listing(place)
    with refusal(ArtifactError, target.removesuffix("/x")):
        compiled.save(target)
    assert listing(place) == before


def test_a_failing_save_leaves_the_old_model(
    saved: Path, compiled: qc.Compiled, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, place / "model.qc")
    before = listing(place)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qcompiler.artifact.write_manifest", full)
    with refusal(ArtifactError, "model.qc", "No space left"):
        compiled.save("model.qc")
    assert listing(place) == before


# ---------------------------------------------------------------- tampered models


def signed(folder: Path, **changes: Any) -> None:
    """Change the manifest, and let it sign the files as they are now: what a forger would do."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    path.write_text(json.dumps(manifest | changes))


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def without(folder: Path, key: str) -> None:
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest_of(folder).items() if k != key}))


def resigned_text(name: str, text: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        (folder / name).write_text(text)
        signed(folder)

    return tamper


def cut_in_half(name: str, *, sign: bool = False) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        if sign:
            signed(folder)

    return tamper


def flip(name: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return tamper


def signature(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: signed(folder, signature=manifest_of(folder)["signature"] | changes)


def listed(name: str) -> Callable[[Path], None]:
    return lambda folder: signed(folder, files={**manifest_of(folder)["files"], name: "0" * 64})


def first_line_becomes(line: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        text = (folder / "graph.txt").read_text().splitlines()
        (folder / "graph.txt").write_text("\n".join([line, *text[1:]]) + "\n")
        signed(folder)

    return tamper


# Loading this one would import the module `trap`, which leaves a file.
IMPORTING = json.dumps([
    1,
    {"type": "collections.defaultdict", "context": json.dumps({
        "default_factory_module": "trap", "default_factory_name": "spring", "dict_context": "[]",
    }), "children_spec": []},
])  # fmt: skip

TAMPERED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "manifest is not JSON": (lambda f: (f / "manifest.json").write_text("{"), ("manifest.json", "not valid JSON")),
    "manifest is binary": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), ("manifest.json",)),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), ("manifest",)),
    "manifest is too deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), ("manifest.json",)),
    "manifest without files": (lambda f: without(f, "files"), ("files",)),
    "manifest without signature": (lambda f: without(f, "signature"), ("signature",)),
    "another format version": (lambda f: signed(f, format=99), ("99",)),
    "files are a list": (lambda f: signed(f, files=["model.onnx"]), ("files",)),
    "files sign nothing": (lambda f: signed(f, files={}), ("model.onnx",)),
    "path escapes": (listed("../../etc/passwd"), ("../../etc/passwd",)),
    "path is absolute": (listed("/etc/passwd"), ("/etc/passwd",)),
    "a listed file is missing": (listed("more.bin"), ("more.bin",)),
    "onnx is missing": (lambda f: (f / "model.onnx").unlink(), ("model.onnx",)),
    "onnx is truncated": (cut_in_half("model.onnx"), ("model.onnx", "SHA-256")),
    "onnx is truncated and signed": (cut_in_half("model.onnx", sign=True), ("ONNX",)),
    "onnx is of another model": (resigned_text("model.onnx", "not a model"), ("ONNX",)),
    "tensors have a flipped bit": (flip("tensors.safetensors"), ("tensors.safetensors", "SHA-256")),
    "tensors are truncated and signed": (cut_in_half("tensors.safetensors", sign=True), ("tensors.safetensors",)),
    "plan is truncated and signed": (cut_in_half("plan.json", sign=True), ("plan.json",)),
    "plan has an odd key": (resigned_text("plan.json", '{"recipe": "int8", "target": "cpu", "odd": 1}'), ("plan",)),
    "plan is a list": (resigned_text("plan.json", "[]"), ("plan",)),
    "report is not JSON": (lambda f: (f / "report.json").write_text("{"), ("report.json",)),
    "report is a list": (lambda f: (f / "report.json").write_text("[1, 2]"), ("report.json",)),
    "target is unknown": (lambda f: signed(f, target="toaster"), ("'toaster'",)),
    "backend is unknown": (lambda f: signed(f, backend="toaster"), ("'toaster'",)),
    "stage is unknown": (lambda f: signed(f, stage="molten"), ("molten",)),
    "signature is a number": (lambda f: signed(f, signature=3), ("signature",)),
    "signature of no specs": (signature(in_spec="{"), ("signature",)),
    "signature of other inputs": (signature(inputs=["a", "b"]), ("inputs",)),
    "signature that imports": (signature(in_spec=IMPORTING), ("signature",)),
    "graph that imports": (first_line_becomes('x = __import__("trap")'), ("line 1", "graph")),
    "graph that calls an attribute": (first_line_becomes('x = aten.add.__class__.mro()'), ("line 1",)),
    "graph that runs a loop": (first_line_becomes("while True: pass"), ("line 1",)),
    "graph of unknown operator": (first_line_becomes("x = aten.launch_missiles.default()"), ("line 1",)),
    "graph that writes a file": (first_line_becomes('x = aten.from_file.default("pwned", True, 9)'), ("line 1",)),
    "graph of deep brackets": (resigned_text("graph.txt", "x = " + "(" * 100_000), ("graph",)),
    "graph is empty": (resigned_text("graph.txt", ""), ("graph",)),
    "graph is cut": (cut_in_half("graph.txt", sign=True), ("graph",)),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_model_is_refused(
    saved: Path, place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place / "model.qc"
    shutil.copytree(saved, folder)
    (place / "trap.py").write_text('open("pwned", "w")\nspring = dict\n')
    monkeypatch.syspath_prepend(str(place))
    tamper, says = TAMPERED[name]
    tamper(folder)
    before = listing(place)
    with pytest.raises(QCompilerError) as caught:
        qc.load(folder, threads=1)
    text = str(caught.value)
    assert isinstance(caught.value, ArtifactError | TargetError | LoweringError), repr(caught.value)
    assert caught.value.fix or caught.value.why
    assert "\n" not in text and len(text) < 900
    assert all(words in text for words in says), text
    assert listing(place) == before
    assert "trap" not in sys.modules


def test_an_honest_model_is_not(saved: Path, compiled: qc.Compiled) -> None:
    """The same check on what was not tampered with: what is refused above is refused for the tampering."""
    assert torch.allclose(qc.load(saved, threads=1)(rows()), compiled(rows()), atol=0.05)


def test_a_signature_may_hold_containers(saved: Path) -> None:
    spec = json.loads(manifest_of(saved)["signature"]["in_spec"])
    assert json.loads(pytree.treespec_dumps(pytree.tree_structure(((0,), {})))) == spec


def test_a_truncated_program_is_refused(program: Path, place: Path) -> None:
    content = program.read_bytes()
    (place / "cut.pt2").write_bytes(content[: len(content) // 2])
    before = listing(place)
    with refusal(InputError, "cut.pt2"):
        qc.compile("cut.pt2", progress=False)
    assert listing(place) == before


# ---------------------------------------------------------------- the command line


@pytest.fixture
def zoo(place: Path, saved: Path) -> Path:
    (place / "zoo.py").write_text(ZOO)
    (place / "broken.py").write_text("def mlp(:\n")
    (place / "importing.py").write_text("import no_such_package\n")
    (place / "leaving.py").write_text("import sys\nsys.exit('goodbye')\n")
    (place / "bad.pt2").write_text("mine")
    (place / "bad.npz").write_text("mine")
    (place / "rows.txt").write_text("1 2 3")
    np.savez(place / "narrow.npz", input=np.zeros((4, 31), dtype=np.float32))
    np.savez(place / "uneven.npz", a=np.zeros((4, 32)), b=np.zeros((3, 32)))
    np.savez(place / "objects.npz", a=np.array([{}], dtype=object))
    (place / "bad.json").write_text("{")
    (place / "folder").mkdir()
    (place / "folder" / "thesis.txt").write_text("years")
    shutil.copytree(saved, place / "model.qc")
    shutil.copytree(saved, place / "silent.qc")
    (place / "silent.qc" / "report.json").unlink()
    shutil.copytree(saved, place / "flipped.qc")
    flip("model.onnx")(place / "flipped.qc")
    return place


MLP = "zoo.py:mlp"
COMMANDS: list[tuple[str, tuple[str, ...]]] = [
    ("compile resnet19", ("'resnet19'", "resnet18")),
    ("compile none.pt2", ("none.pt2",)),
    ("compile bad.pt2", ("bad.pt2",)),
    ("compile zoo.py", ("zoo.py:",)),
    ("compile none.py:mlp", ("none.py",)),
    ("compile zoo.py:none", ("'none'", "mlp")),
    ("compile zoo.py:answer", ("'answer'",)),
    ("compile zoo.py:", ("zoo.py",)),
    ("compile broken.py:mlp", ("broken.py:1", "SyntaxError")),
    ("compile importing.py:mlp", ("importing.py:1", "no_such_package")),
    ("compile leaving.py:mlp", ("leaving.py", "goodbye")),
    ("compile zoo.py:raising", ("'raising'", "zoo.py:", "the weights are elsewhere")),
    ("compile zoo.py:number", ("'number'", "int")),
    ("compile zoo.py:bare", ("'bare'", "example inputs")),
    ("compile zoo.py:lazy", ("metric", "str")),
    ("compile zoo.py:training", ("training mode",)),
    ("compile zoo.py:branch", ("zoo.py:", "if x.sum() > 0")),
    ("compile zoo.py:poisoned", ("NaN", "batch 1")),
    (f"compile {MLP} --recipe int9", ("'int9'",)),
    (f"compile {MLP} --recipe none.json", ("none.json",)),
    (f"compile {MLP} --recipe bad.json", ("bad.json",)),
    (f"compile {MLP} --target toaster", ("'toaster'",)),
    (f"compile {MLP} --backend toaster", ("'toaster'",)),
    (f"compile {MLP} --calibration none.npz", ("none.npz",)),
    (f"compile {MLP} --calibration bad.npz", ("bad.npz",)),
    (f"compile {MLP} --calibration rows.txt", ("rows.txt",)),
    (f"compile {MLP} --calibration narrow.npz", ("31",)),
    (f"compile {MLP} --calibration uneven.npz", ("a has 4", "b has 3")),
    (f"compile {MLP} --calibration objects.npz", ("objects.npz",)),
    (f"compile {MLP} --override 0", ("'0'", "PATTERN")),
    (f"compile {MLP} --override :weights=int8", ("':weights=int8'",)),
    (f"compile {MLP} --override 0:", ("'0:'",)),
    (f"compile {MLP} --override 0:weights", ("'weights'",)),
    (f"compile {MLP} --override 0:weights=", ("weights=",)),
    (f"compile {MLP} --override 0:weights=int8,weights=int4", ("'weights' twice",)),
    (f"compile {MLP} --override 0:bits=4", ("'bits'",)),
    (f"compile {MLP} --override 0:weights=int8x", ("int8x",)),
    (f"compile {MLP} --override 0:observers=median", ("'median'",)),
    (f"compile {MLP} --override 0:group_size=many", ("'many'",)),
    (f"compile {MLP} --override layer9:weights=int8", ("'layer9'",)),
    (f"compile {MLP} -o zoo.py", ("zoo.py",)),
    (f"compile {MLP} -o folder", ("folder",)),
    (f"compile {MLP} -o zoo.py/model", ("zoo.py",)),
    (f"compile {MLP} --json none/report.json", ("none",)),
    (f"compile {MLP} --json folder", ("folder",)),
    (f"export {MLP} -o none/x.onnx", ("none",)),
    (f"export {MLP} -o folder", ("folder",)),
    (f"export {MLP} -o x.onnx --opset 7", ("opset 7",)),
    (f"export {MLP} -o x.onnx --recipe int9", ("'int9'",)),
    (f"explain {MLP} layer9", ("'layer9'", "0/linear")),
    (f"explain {MLP} --json none/x.json", ("none",)),
    (f"bench {MLP} --recipe int8 --recipe int8", ("'int8'",)),
    (f"bench {MLP} --recipe int9", ("'int9'",)),
    ("report none", ("none",)),
    ("report folder", ("folder", "manifest.json")),
    ("report flipped.qc", ("model.onnx", "SHA-256")),
    ("report silent.qc", ("report.json",)),
    ("report model.qc -o none/page.html", ("none",)),
    ("report model.qc -o folder", ("folder",)),
    ("demo -o zoo.py", ("zoo.py",)),
]
USAGE: list[tuple[str, tuple[str, ...]]] = [
    ("compute resnet18", ("compute",)),
    ("compile", ("MODEL",)),
    (f"compile {MLP} --odd", ("--odd",)),
    (f"compile {MLP} --batch 0", ("--batch",)),
    (f"compile {MLP} --batch many", ("--batch",)),
    (f"compile {MLP} --threads -1", ("--threads",)),
    (f"compile {MLP} --seed x", ("--seed",)),
    (f"compile {MLP} more", ("more",)),
    (f"export {MLP}", ("--output",)),
    ("report", ("DIR",)),
    ("models all", ("all",)),
]


@pytest.mark.parametrize(
    ("command", "says", "code"),
    [*((*row, 1) for row in COMMANDS), *((*row, 2) for row in USAGE)],
)
def test_a_malformed_command_ends_in_one_sentence(
    zoo: Path, command: str, says: tuple[str, ...], code: int
) -> None:
    before = listing(zoo)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == code, result.output
    check_sentence(result.stderr, says)
    assert result.stdout == ""
    assert listing(zoo) == before


def check_sentence(stderr: str, says: tuple[str, ...]) -> None:
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1 and stderr.endswith("\n")
    assert "Traceback" not in stderr and "unexpected" not in stderr
    assert all(words in stderr for words in says), stderr


@pytest.mark.parametrize(
    ("command", "says", "code"),
    [
        ("compile zoo.py:branch -o out", ("if x.sum() > 0",), 1),
        ("report flipped.qc", ("SHA-256",), 1),
        ("compile", ("MODEL",), 2),
    ],
)
def test_the_installed_command_does_the_same(zoo: Path, command: str, says: tuple[str, ...], code: int) -> None:
    before = listing(zoo)
    run = [sys.executable, "-c", "from qcompiler.cli import main; main()", *command.split()]
    found = subprocess.run(run, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert found.returncode == code, found.stderr
    check_sentence(found.stderr, says)
    assert found.stdout == ""
    assert listing(zoo) == before
