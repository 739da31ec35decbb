"""A model as a library: the same numbers where there is no torch; damage and refusals in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm_ffi
from torch import Tensor, nn

import qcompiler as qc
from qcompiler import api
from qcompiler.api import explain
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.library import Library, compare, run, write_library
from qcompiler.backends.tvm.library.run import LibraryError, Model
from qcompiler.backends.tvm.program import Moving
from qcompiler.errors import ArtifactError, ContractError, InputError, LoweringError, TargetError
from qcompiler.proof import quantized
from qcompiler.target import find_target
from tests.backends.tvm.sets import RUNNABLE, pytestmark

__all__ = ["pytestmark"]
TARGET = find_target("cpu", "tvm")

# A process that has what a library needs, and cannot have what it does not need.
ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "qcompiler", "tvm")))
path, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(path, run_name="__main__")
"""


class Images(nn.Module):
    """Borders, a residual, and a view of an image of codes as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(F.relu(self.body(x) + x), 2)
        return self.head(x.flatten(1)), x


class Words(nn.Module):
    """An embedding, positions, attention with a mask, and the first row of each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.qkv, self.out, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 4)
        self.positions = nn.Parameter(torch.randn(1, 6, 32))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions
        rows = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rows[0], rows[1], rows[2], attn_mask=mask[:, None, None] != 0)
        y: Tensor = self.head((x + self.out(mixed.transpose(1, 2).flatten(2)))[:, 0])
        return y


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.cumsum(self.first(x), 1))
        return y


class Sequences(nn.Module):
    """A convolution along one axis, and float functions between it and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.last = nn.Conv1d(4, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.line(x), 1)
        y: Tensor = self.last(x.transpose(1, 2) + 0.25)
        return y


MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
NETWORKS: dict[str, tuple[type[nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "images": (Images, lambda: (torch.randn(2, 3, 8, 8),)),
    "words": (Words, lambda: (torch.randint(50, (2, 6)), MASK)),
    "sequences": (Sequences, lambda: (torch.randn(2, 4, 10),)),
    "sums": (Sums, lambda: (torch.randn(4, 32),)),
}


@cache
def lowered(name: str) -> tuple[TvmExecutable, list[Tensor]]:
    torch.manual_seed(0)
    network, given = NETWORKS[name]
    decision = explain(network().eval(), given(), calibration=[given()], target=TARGET)
    executable = Tvm(TARGET).lower(quantized(decision), threads=1)
    assert isinstance(executable, TvmExecutable)
    return executable, list(given())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TvmExecutable, list[Tensor], Library]:
    executable, inputs = lowered("images")
    return (
        executable,
        inputs,
        write_library(executable, inputs, tmp_path_factory.mktemp("library") / "images"),
    )


@pytest.fixture
def folder(exported: tuple[TvmExecutable, list[Tensor], Library], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported[2].folder, tmp_path / "copy"))


def kinds(kind: type) -> Iterator[type]:
    """All kinds of steps between values and memory; those between carry no step of their own."""
    below: list[type] = kind.__subclasses__()
    yield from [kind] if not below else [leaf for each in below for leaf in kinds(each)]


def test_the_loader_knows_every_kind_of_step() -> None:
    names = {kind.__name__.lower() for kind in kinds(Moving)}
    assert names > {"load", "put", "take"} and all(hasattr(Model, name) for name in names)


def started(folder: Path, inputs: Sequence[Tensor], out: Path) -> subprocess.Popen[str]:
    names = [port["name"] for port in run.read(folder)["inputs"]]
    np.savez(out.with_suffix(".in.npz"), **dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, str(folder / "run.py"), str(out.with_suffix(".in.npz")), str(out)],
        cwd=out.parent, env={"PATH": os.environ["PATH"]}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("network", ["images", "words"])
def test_two_processes_without_torch_compute_what_the_compiled_model_does(
    network: str, tmp_path: Path
) -> None:
    """On inputs that the export has not seen, to the last bit."""
    executable, inputs = lowered(network)
    folder = write_library(executable, inputs, tmp_path / "library").folder
    others = [NETWORKS[network][1](), NETWORKS[network][1]()]
    outs = [tmp_path / f"out{i}.npz" for i in range(2)]
    running = [started(folder, given, out) for given, out in zip(others, outs, strict=True)]
    for process, given, out in zip(running, others, outs, strict=True):
        assert process.wait(60) == 0, process.stderr and process.stderr.read()
        with np.load(out) as found:
            arrays = [found[port["name"]] for port in run.read(folder)["outputs"]]
        wanted = [x.contiguous().numpy() for x in executable(given)]
        assert [x.tobytes() for x in arrays] == [x.tobytes() for x in wanted]
        assert [(x.shape, x.dtype) for x in arrays] == [(x.shape, x.dtype) for x in wanted]


def test_every_constant_lies_where_a_vector_load_may_begin(folder: Path) -> None:
    manifest = run.read(folder)
    found = [*manifest["constants"].values(), *manifest["stores"].values()]
    assert found and all(each["offset"] % run.ALIGNMENT == 0 for each in found)


def test_the_folder_is_complete_and_says_what_it_needs(
    exported: tuple[TvmExecutable, list[Tensor], Library],
) -> None:
    library, manifest = exported[2], run.read(exported[2].folder)
    assert sorted(library.files) == ["constants.bin", "manifest.json", manifest["code"], "run.py"]
    assert set(RUNNABLE[0].features) <= set(library.features) <= run.features()
    assert manifest["inputs"] == [{"name": "x", "shape": [2, 3, 8, 8], "dtype": "float32"}]
    assert manifest["threads"] == 1


def test_a_library_that_was_replaced_is_another(
    exported: tuple[TvmExecutable, list[Tensor], Library], tmp_path: Path
) -> None:
    """The code of the first one is still in this process, under the path that the second one has."""
    executable, inputs, _ = exported
    path = tmp_path / "library"
    write_library(executable, inputs, path)
    first, x = Model(path), inputs[0].numpy()
    before = first(x)
    words, given = lowered("words")
    write_library(words, given, path)
    (found,), (wanted,) = Model(path)(*(each.numpy() for each in given)), words(given)
    assert np.array_equal(found, wanted.numpy())
    assert all(np.array_equal(a, b) for a, b in zip(first(x), before, strict=True))


# ---------------------------------------------------------------- damage


def flipped(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = next(folder.glob(name))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return spoil


def changed(key: str, to: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: to}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flipped("constants.bin"), "constants.bin' is not the file that was exported; copy the folder again"),
        (flipped("model-*.so"), ".so' is not the file that was exported; copy the folder again"),
        (changed("arena", 0), "manifest.json' is not the file that was exported; copy the folder again"),
        (changed("format", 9), "has format 9, and this loader reads 1; use its own"),
        (lambda folder: (folder / "constants.bin").unlink(), "lacks the file 'constants.bin'"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "its manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "its manifest.json cannot be read"),
    ],
)
def test_damage_is_one_sentence(folder: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(folder)
    with pytest.raises(LibraryError) as error:
        Model(folder)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_process_says_it_as_well(folder: Path, tmp_path: Path) -> None:
    process = started(folder, [torch.zeros(1)], tmp_path / "out.npz")
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert process.stderr.read().startswith("error: input 'x' is float32 [1], and the model was compiled for")
    assert not (tmp_path / "out.npz").exists()


def test_another_machine_is_refused_before_code_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : sse sse2 avx2 fma\n")
    monkeypatch.setattr(run, "CPU", tmp_path / "cpuinfo")
    with pytest.raises(LibraryError, match=r"this CPU lacks .*f16c.*, which the library was compiled for"):
        Model(folder)
    monkeypatch.setattr(run, "CPU", tmp_path / "none")
    with pytest.raises(LibraryError, match="nothing says what this CPU can do"):
        Model(folder)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(LibraryError, match="and this is Linux on riscv64; export it for here"):
        Model(folder)


def test_code_that_the_system_cannot_load_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    (folder / manifest["code"]).write_bytes(b"no code")
    manifest["files"][manifest["code"]]["sha256"] = run.digest(b"no code")
    path.write_text(json.dumps({**manifest, "sha256": run.digest(run.canonical(manifest))}))
    with pytest.raises(LibraryError, match=r"\.so' cannot be loaded: ") as error:
        Model(folder)
    assert "\n" not in str(error.value)


def test_a_library_is_no_saved_model(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is an exported library and no saved model, because it holds"):
        qc.load(folder)


def test_another_runtime_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_ffi, "__version__", "0.2.0")
    with pytest.raises(
        LibraryError, match=r"0\.2\.0 is not what this library calls; install apache-tvm-ffi==0"
    ):
        Model(folder)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), r"the model takes 1 inputs \(x\), and 0 were given"),
        ((np.zeros((1, 3, 8, 8), np.float32),), r"float32 \[1, 3, 8, 8\], and the model was compiled for"),
        ((np.zeros((2, 3, 8, 8)),), r"'x' is float64 .* compiled for float32 \[2, 3, 8, 8\]"),
    ],
)
def test_other_inputs_are_refused(folder: Path, given: tuple[object, ...], said: str) -> None:
    with pytest.raises(LibraryError, match=said):
        Model(folder)(*given)


def test_an_index_beyond_its_table_is_refused(tmp_path: Path) -> None:
    executable, inputs = lowered("words")
    model = Model(write_library(executable, inputs, tmp_path / "library").folder)
    with pytest.raises(LibraryError, match=r"'tokens' holds numbers that are not 0 \.\. 49"):
        model(np.full((2, 6), 50), MASK.numpy())


# ---------------------------------------------------------------- refusals to export


def test_sequences_and_float_functions_are_in_it(tmp_path: Path) -> None:
    executable, inputs = lowered("sequences")
    write_library(executable, inputs, tmp_path / "lib")  # which compares it with the executable
    steps = json.loads((tmp_path / "lib/manifest.json").read_text())["steps"]
    assert "function" in {step["do"] for step in steps}


def test_a_step_of_torch_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"at 'cumsum' \(aten.cumsum.default\), because"):
        write_library(*lowered("sums"), tmp_path / "library")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("compiler", "why"), [("", "there is no compiler in PATH"), ("/bin/false", "Compilation error")]
)
def test_nothing_is_left_where_nothing_can_link(
    exported: tuple[TvmExecutable, list[Tensor], Library],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    why: str,
) -> None:
    executable, inputs, _ = exported
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError) as error:
        write_library(executable, inputs, tmp_path / "library")
    assert f"because {why}" in str(error.value)
    assert "; install a C++ compiler here" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_other_numbers_are_refused(exported: tuple[TvmExecutable, list[Tensor], Library]) -> None:
    executable, inputs, library = exported
    outputs = executable(inputs)
    compare(library.folder, inputs, outputs)
    outputs[0][1, 2] = torch.nextafter(outputs[0][1, 2], torch.tensor(torch.inf))
    with pytest.raises(ContractError, match="computes other numbers than the compiled model at linear"):
        compare(library.folder, inputs, outputs)


def test_only_what_we_wrote_is_replaced(
    exported: tuple[TvmExecutable, list[Tensor], Library], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "files": {}}')
    with pytest.raises(ArtifactError, match="exists and is not a saved model"):
        write_library(*exported[:2], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


# ---------------------------------------------------------------- the way of a user


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed guard times, and could give a model as small as these back to float."""
    monkeypatch.setattr(api, "raced", lambda *_, **__: None)


@pytest.mark.usefixtures("unguarded")
def test_a_compiled_model_is_exported_from_the_front_door(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = Images().eval(), NETWORKS["images"][1]
    compiled = qc.compile(model, given(), calibration=[given()], backend="tvm", threads=1, progress=False)
    x = torch.randn(1, 3, 8, 8)  # another batch than it was compiled with
    library = qc.export_library(compiled, x, tmp_path / "library")
    found = Model(library.folder)(x.numpy())
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found, compiled(x), strict=True))
    least = RUNNABLE[-1]
    other = qc.export_library(compiled, x, tmp_path / "library", isa=least.name)
    assert run.read(other.folder)["isa"] == least.name
    assert set(least.features) <= set(other.features) <= set(library.features)
    assert other.features != library.features or least == RUNNABLE[0]
    found = Model(other.folder)(x.numpy())
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found, compiled(x), strict=True))
    with pytest.raises(InputError, match="'x'"):
        qc.export_library(compiled, torch.randn(1, 4, 8, 8), tmp_path / "other")
    assert [file.name for file in tmp_path.iterdir()] == ["library"]


@pytest.mark.usefixtures("unguarded")
def test_a_model_on_another_engine_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = qc.compile(Sums().eval(), torch.randn(4, 32), backend="ort", progress=False)
    with pytest.raises(
        TargetError, match=r"does not run on kernels of our own.*; compile it with backend='tvm'"
    ):
        qc.export_library(compiled, torch.randn(4, 32), tmp_path / "library")
