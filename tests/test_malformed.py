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
from collections.abc import Callable, Iterator, Sequence
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


HERE = Path(__file__).name
NAN = float("nan")


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
    calls: Tensor

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
    if listing(temporary):  # an executable may wait to be collected, and its files with it
        gc.collect()
    assert {name for name in listing(temporary) if "torchinductor" not in name} == set()


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones among them, with its content; folders end in a slash."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": b""
        if path.is_dir()
        else path.read_bytes()
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


# ---------------------------------------------------------------- models, inputs, calibration, recipes

# What compile_mlp is given instead of its own, the error, and words of its message.
INPUTS: dict[str, tuple[dict[str, Any], type[QCompilerError], *tuple[str, ...]]] = {
    "no example": ({"example": None}, InputError, "example inputs"),
    "example is a string": ({"example": "x"}, InputError, "str"),
    "example is a number": ({"example": 3}, InputError, "int"),
    "example of lists": ({"example": ([1.0, 2.0],)}, InputError, "example"),
    "example of wrong width": ({"example": rows(2, 31)}, InputError, "[2, 31]"),
    "example without rows": ({"example": rows(0)}, InputError, "empty", "[0, 32]"),
    "example with odd keyword": ({"example": {"odd": rows()}}, InputError, "odd"),
    "model fails": ({"model": Failing().eval()}, InputError, "tokens are out of range", f"{HERE}:"),
    "model in training": ({"model": Mlp()}, InputError, "training mode"),
    "model is a function": ({"model": torch.relu}, InputError, "nn.Module"),
    "model is None": ({"model": None}, InputError, "NoneType"),
    "model is a class": ({"model": Mlp}, InputError, "nn.Module"),
    "model writes a buffer": ({"model": Counter().eval()}, TraceError, "'calls'"),
    "model branches on data": (
        {"model": Branch().eval(), "strict": True}, TraceError, f"{HERE}:", "if x.sum() > 0",
    ),
    "data are a string": ({"calibration": "images"}, CalibrationError, "str"),
    "data are bytes": ({"calibration": b"images"}, CalibrationError, "bytes"),
    "data are a tensor": ({"calibration": rows()}, CalibrationError, "Tensor"),
    "data are a number": ({"calibration": 5}, CalibrationError, "int"),
    "data are a dict": ({"calibration": {"input": rows()}}, CalibrationError, "dict"),
    "no data": ({"calibration": []}, CalibrationError, "empty"),
    "no data from a generator": ({"calibration": iter(())}, CalibrationError, "empty"),
    "a batch without rows": ({"calibration": [rows(), rows(0)]}, CalibrationError, "input", "batch 2"),
    "a batch of strings": ({"calibration": ["a"]}, InputError, "str"),
    "a batch of pairs": ({"calibration": [(rows(), rows())]}, InputError, "the call has 2"),
    "a batch of odd names": ({"calibration": [{"odd": rows()}]}, InputError, "arranged otherwise"),
    "a batch of wrong width": ({"calibration": [rows(), rows(2, 5)]}, InputError, "[2, 5]"),
    "a batch of wrong dtype": ({"calibration": [rows().double()]}, InputError, "float64"),
    "NaN in the data": ({"calibration": [rows(), rows() * NAN]}, CalibrationError, "input", "batch 2", "NaN"),
    "NaN where ranges come at run time": (
        {"calibration": [rows(), rows() * NAN], "recipe": "int8-dynamic"},
        CalibrationError, "input", "batch 2", "NaN",
    ),
    "NaN where nothing has a range": (
        {"calibration": [rows() * NAN], "recipe": "w8a16"}, CalibrationError, "input", "batch 1", "NaN",
    ),
    "inf in the data": ({"calibration": [rows() / 0]}, CalibrationError, "input", "batch 1", "inf"),
    "NaN inside": (
        {"model": Log().eval(), "example": rows().abs()}, CalibrationError, "log", "NaN", "batch 1",
    ),
    "inf comes out, where ranges come at run time": (
        {"model": nn.Sequential(nn.Linear(32, 32), Log()).eval(), "recipe": "int8-dynamic"},
        InputError, "the model computes NaN or inf", "float32",
    ),
    "inf inside": (
        {"model": Log().eval(), "example": rows().abs(), "calibration": [rows() * 0]},
        CalibrationError, "log", "inf", "batch 1",
    ),
    "recipe is a number": ({"recipe": 8}, RecipeError, "'8'"),
    "unknown target": ({"target": "toaster"}, TargetError, "'toaster'"),
    "target is a number": ({"target": 3}, TargetError, "3"),
    "unknown backend": ({"backend": "toaster"}, LoweringError, "'toaster'"),
    "group size does not divide": (
        {"recipe": {"base": "w4a16", "group_size": 7}}, PlanError, "7", "32", "0/linear",
    ),
    "no kernel for the weights": (
        {"recipe": {"base": "w4a16", "weights": "uint8"}}, PlanError, "uint8", "0/linear",
    ),
    "target lacks the format": ({"recipe": {"weights": "int7"}}, TargetError, "int7", "cpu"),
}  # fmt: skip


def override(**entry: Any) -> dict[str, Any]:
    return {"overrides": [entry]}


# A recipe, and words of the refusal.
RECIPES: list[tuple[str | dict[str, Any], *tuple[str, ...]]] = [
    ("int9", "'int9'"),
    ("none.json", "none.json"),
    ("broken.json", "broken.json"),
    ("binary.json", "binary.json"),
    ("deep.json", "deep.json"),
    ("list.json", "list.json", "object"),
    ("folder.json", "folder.json"),
    ({"wieghts": "int8"}, "'wieghts'"),
    ({"base": "int9"}, "'int9'"),
    ({"observers": ["median"]}, "'median'"),
    ({"observers": []}, "observer"),
    ({"observers": "minmax"}, "observers is 'minmax'"),
    ({"weight_observer": "max"}, "'max'"),
    ({"weights": "int8x"}, "int8x"),
    ({"activations": 8}, "activations is 8"),
    ({"group_size": "many"}, "group_size is 'many'"),
    ({"group_size": -4}, "group_size is -4"),
    ({"smooth": "much"}, "smooth is 'much'"),
    ({"smooth": 2.0}, "smooth is 2.0"),
    ({"dynamic": "maybe"}, "dynamic is 'maybe'"),
    ({"overrides": 3}, "overrides is 3"),
    ({"overrides": ["0"]}, "override is '0'"),
    (override(weights=None), "override", "pattern"),
    (override(pattern="0", bits=4), "'bits'", "'0'"),
    (override(pattern="0", weights="int8x"), "int8x"),
    (override(pattern="0", group_size="x"), "group_size is 'x'"),
    (override(pattern="layer9.*", weights=None), "'layer9.*'", "matches no layer"),
]


def export(path: str, **options: Any) -> object:
    return qc.export_onnx(Mlp().eval(), rows(), path, **options)


def open_program(path: str) -> object:
    return qc.compile(path, progress=False)


W4 = {"base": "w4a16", "group_size": 16}
W8 = {"base": "w8a16", **override(pattern="0", group_size=32)}
PATHS: dict[str, tuple[Callable[[], object], type[QCompilerError], *tuple[str, ...]]] = {
    "export into nowhere": (lambda: export("none/x.onnx"), ArtifactError, "none"),
    "export onto a folder": (lambda: export("folder.json"), ArtifactError, "folder.json"),
    "export below a file": (lambda: export("file/x.onnx"), ArtifactError, "file"),
    "opset too low": (lambda: export("x.onnx", opset=7), LoweringError, "opset 7"),
    "opset too high": (lambda: export("x.onnx", opset=99), LoweringError, "opset 99"),
    "opset lacks the format": (lambda: export("x.onnx", opset=18, recipe=W4), LoweringError, "18", "int4"),
    "opset lacks groups": (lambda: export("x.onnx", opset=20, recipe=W8), LoweringError, "20", "21"),
    "load from nowhere": (lambda: qc.load("none"), ArtifactError, "none"),
    "load without manifest": (lambda: qc.load("."), ArtifactError, "manifest.json"),
    "load from a file": (lambda: qc.load("file"), ArtifactError, "file"),
    "no such program": (lambda: open_program("none.pt2"), InputError, "none.pt2"),
    "program is text": (lambda: open_program("text.pt2"), InputError, "text.pt2"),
    "program is a folder": (lambda: open_program("folder.pt2"), InputError, "folder.pt2"),
}


@pytest.fixture
def littered(place: Path) -> Path:
    """The folder with files that are not what their names say."""
    for name in ("file", "text.pt2"):
        (place / name).write_text("mine")
    for name in ("folder.json", "folder.pt2"):
        (place / name).mkdir()
    (place / "broken.json").write_text("{")
    (place / "binary.json").write_bytes(b"\xff\xfe\x00")
    (place / "deep.json").write_text("[" * 100_000)
    (place / "list.json").write_text("[1]")
    return place


@pytest.mark.parametrize("name", INPUTS)
def test_a_malformed_argument_is_refused(place: Path, name: str) -> None:
    changes, error, *says = INPUTS[name]
    with refusal(error, *says):
        compile_mlp(**changes)
    assert listing(place) == {}


@pytest.mark.parametrize(("recipe", "says"), [(recipe, says) for recipe, *says in RECIPES])
def test_a_malformed_recipe_is_refused(
    littered: Path, recipe: str | dict[str, Any], says: Sequence[str]
) -> None:
    before = listing(littered)
    with refusal(RecipeError, *says):
        compile_mlp(recipe=recipe)
    assert listing(littered) == before


@pytest.mark.parametrize("name", PATHS)
def test_a_path_to_something_else_is_refused(littered: Path, name: str) -> None:
    call, error, *says = PATHS[name]
    before = listing(littered)
    with refusal(error, *says):
        call()
    assert listing(littered) == before


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
        (([rows()],), {}, "list"),
        (({"input": rows()},), {}, "dict"),
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
    manifest["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    path.write_text(json.dumps(manifest | changes))


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def without(folder: Path, key: str) -> None:
    (folder / "manifest.json").write_text(
        json.dumps({k: v for k, v in manifest_of(folder).items() if k != key})
    )


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
    "manifest is not JSON": (lambda f: (f / "manifest.json").write_text("{"), ("manifest.json", "JSON")),
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
    "tensors are truncated and signed": (cut_in_half("tensors.safetensors", sign=True), ("tensors.",)),
    "plan is truncated and signed": (cut_in_half("plan.json", sign=True), ("plan.json",)),
    "plan has an odd key": (resigned_text("plan.json", '{"recipe": "", "target": "", "odd": 1}'), ("plan",)),
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
    "graph that imports": (first_line_becomes('x = __import__("trap")'), ("graph text", "__import__")),
    "graph that calls an attribute": (first_line_becomes("x = aten.add.__class__.mro()"), ("__class__",)),
    "graph that runs a loop": (first_line_becomes("while True: pass"), ("graph text", "while")),
    "graph of unknown operator": (first_line_becomes("x = aten.launch.default()"), ("aten.launch",)),
    "graph that writes a file": (
        first_line_becomes('x = aten.from_file.default("pwned", True, 9)'), ("from_file",),
    ),
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
    assert "Traceback" not in stderr and "error: unexpected" not in stderr
    assert all(words in stderr for words in says), stderr


@pytest.mark.parametrize(
    ("command", "says", "code"),
    [
        ("compile zoo.py:branch -o out", ("if x.sum() > 0",), 1),
        ("report flipped.qc", ("SHA-256",), 1),
        ("compile", ("MODEL",), 2),
    ],
)
def test_the_installed_command_does_the_same(
    zoo: Path, command: str, says: tuple[str, ...], code: int
) -> None:
    before = listing(zoo)
    run = [sys.executable, "-c", "from qcompiler.cli import main; main()", *command.split()]
    found = subprocess.run(run, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert found.returncode == code, found.stderr
    check_sentence(found.stderr, says)
    assert found.stdout == ""
    assert listing(zoo) == before
