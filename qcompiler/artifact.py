"""Saved models: a folder of ONNX, safetensors, text and JSON with a manifest; loading executes nothing.

manifest.json       recipe, seed, hashes, versions, CPU, signature, SHA-256 of every other file
model.onnx          what ONNX Runtime runs (model.onnx.data beside it if large)
graph.txt           the quantized graph as canonical text, with tensors.safetensors: the reference
plan.json           every decision
report.json         the report's data; the only file that holds timings
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from qcompiler.errors import ArtifactError, GraphError
from qcompiler.ir import Graph, Signature, check_stage, format_text, parse_text
from qcompiler.ir.archive import is_structure
from qcompiler.ir.stage import STAGES
from qcompiler.plan import Plan, plan_from_json, plan_to_json

T = TypeVar("T")

FORMAT = 1
MANIFEST = "manifest.json"
SIGNED = ("graph.txt", "tensors.safetensors", "plan.json")  # what every model is made of
ENGINE = "model.*"  # what an engine wrote and will read, signed where it is there
UNSIGNED = {"report.json", "report.html"}  # hold timings, so they differ from run to run
# What the manifest of a saved model has, or that of an exported library; other programs call files so, too.
OURS = ({"format", "stage", "signature", "files"}, {"format", "stores", "steps", "files"})


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place at the end, or leaves no trace."""
    check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise ArtifactError(
            f"cannot write to '{path}'", why=str(error), fix="choose a folder you may write"
        ) from error
    try:
        yield draft
        draft.chmod(0o755)
        for file in draft.iterdir():
            file.chmod(0o644)  # some writers make files that only their owner reads
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
            os.replace(path, old / "old")
            try:
                os.replace(draft, path)
            except BaseException:
                os.replace(old / "old", path)
                raise
            finally:
                shutil.rmtree(old)
        else:
            os.replace(draft, path)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ArtifactError(
            f"cannot write '{path}'", why=str(error), fix="make room, or choose another folder"
        ) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_replaceable(path: Path) -> None:
    """Only an artifact may be overwritten, never a file or folder of another kind."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not is_ours(path / MANIFEST)):
        raise ArtifactError(
            f"'{path}' exists and is not a saved model",
            why="it would be overwritten",
            fix="choose another path",
        )
    above = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ArtifactError(
            f"cannot write to '{path}'",
            why=f"'{above}' is no folder that you may write",
            fix="choose another path",
        )


def is_ours(manifest: Path) -> bool:
    """Whether a manifest.json is one that we wrote."""
    try:
        data = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and any(keys <= set(data) for keys in OURS)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json_text(data))


def json_text(data: Any) -> str:
    """JSON that every reader takes: it has no infinity and no NaN, which become null."""
    return json.dumps(finite(data), indent=1, sort_keys=True, default=str, allow_nan=False) + "\n"


def finite(data: Any) -> Any:
    match data:
        case float():
            return data if math.isfinite(data) else None
        case Mapping():
            return {key: finite(value) for key, value in data.items()}
        case list() | tuple():
            return [finite(value) for value in data]
    return data


def write_graph(folder: Path, graph: Graph, plan: Plan) -> None:
    (folder / "graph.txt").write_text(format_text(graph))
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in graph.tensors.items()},
        folder / "tensors.safetensors",
    )
    write_json(folder / "plan.json", plan_to_json(plan))


def write_manifest(folder: Path, manifest: Mapping[str, Any], graph: Graph) -> None:
    """The manifest comes last: it signs every file that is equal for equal inputs."""
    files = sorted(file.name for file in folder.iterdir() if file.name not in UNSIGNED)
    data = {
        **manifest,
        "format": FORMAT,
        "stage": graph.stage,
        "signature": signature_to_json(graph.signature),
        "files": {name: digest(folder / name) for name in files},
    }
    write_json(folder / MANIFEST, data)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved model, after checking that every file is what it signs."""
    if not folder.is_dir() or not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"'{folder}' is not a saved model",
            why=f"it has no {MANIFEST}",
            fix="give the folder that save() wrote",
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"'{folder / MANIFEST}' is not valid JSON", why=str(error), fix="save the model again"
        ) from error
    if is_ours(folder / MANIFEST) and "signature" not in manifest:
        raise ArtifactError(
            f"'{folder}' is an exported library and no saved model",
            why="it holds machine code, and loading a saved model executes nothing",
            fix="open it with Model of its run.py, or give the folder that save() wrote",
        )  # fmt: skip
    wanted = ("format", "files", "signature", "stage", "backend", "target", "recipe")
    missing = [key for key in wanted if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise ArtifactError(f"the manifest of '{folder}' lacks {missing}", fix="save the model again")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"'{folder}' has artifact format {manifest['format']}", why=f"this version reads {FORMAT}",
            fix="save it again with this version",
        )  # fmt: skip
    files = manifest["files"]
    needed = (*sorted(file.name for file in folder.glob(ENGINE)), *SIGNED)
    unsigned = [name for name in needed if not isinstance(files, dict) or name not in files]
    if unsigned:
        raise ArtifactError(
            f"the manifest of '{folder}' has files that do not sign {unsigned[0]}", fix="save the model again"
        )
    for name, expected in files.items():
        check_file(folder, str(name), expected)
    return dict(manifest)


def check_file(folder: Path, name: str, expected: Any) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(
            f"'{folder}' lacks the file '{name}'", fix="copy the whole folder, or save it again"
        )
    if digest(path) != expected:
        raise ArtifactError(
            f"'{path}' is not the file that was saved", why="its SHA-256 differs from the manifest",
            fix="copy the folder again, or save the model again",
        )  # fmt: skip


def read_graph(folder: Path, manifest: Mapping[str, Any]) -> tuple[Graph, Plan]:
    """The graph and its plan; raises ArtifactError naming the file that does not hold what it should."""
    tensors = understood(folder / "tensors.safetensors", load_file)
    plan = understood(folder / "plan.json", lambda path: plan_from_json(json.loads(path.read_text())))
    text = understood(folder / "graph.txt", Path.read_text)
    signature, stage = signature_from_json(manifest["signature"]), str(manifest["stage"])
    if stage not in STAGES:
        raise ArtifactError(
            f"the manifest of '{folder}' names the stage '{stage}'", why=f"known are {', '.join(STAGES)}",
            fix="save the model again",
        )  # fmt: skip
    graph = parse_text(text, tensors, signature, stage)
    try:
        check_stage(graph)
    except GraphError as error:
        raise ArtifactError(
            f"the graph in '{folder}' is malformed", why=str(error), fix="save the model again"
        ) from error
    return graph, plan


def understood(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file; each reader has exceptions of its own for what it cannot read."""
    try:
        return read(path)
    except Exception as error:
        raise ArtifactError(
            f"'{path}' cannot be read",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="save the model again",
        ) from error


def signature_to_json(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": list(signature.inputs),
        "argument_names": list(signature.argument_names),
        "in_spec": dump_spec(signature.in_spec),
        "out_spec": dump_spec(signature.out_spec),
    }


def dump_spec(spec: Any) -> str:
    """A pytree spec as JSON; a result type that only its library knows becomes a tuple."""
    try:
        return pytree.treespec_dumps(spec)
    except Exception:
        return pytree.treespec_dumps(pytree.tree_structure(tuple(range(spec.num_leaves))))


def signature_from_json(data: Any) -> Signature:
    try:
        return Signature(
            inputs=tuple(data["inputs"]),
            argument_names=tuple(data["argument_names"]),
            in_spec=load_spec(data["in_spec"]),
            out_spec=load_spec(data["out_spec"]),
        )
    except Exception as error:
        raise ArtifactError(
            "the manifest's signature is malformed", why=str(error)[:300], fix="save the model again"
        ) from error


def load_spec(text: str) -> Any:
    """The inverse of `dump_spec`; a spec may name classes to import, and such a one is not loaded."""
    protocol, structure = json.loads(text)
    if not is_structure(structure):
        raise ValueError("a call of this model would import a module")
    return pytree.treespec_loads(json.dumps([protocol, with_known_types(structure)]))


def with_known_types(structure: Any) -> Any:
    """A container that no library has registered in this process becomes a plain tuple, with a warning."""
    children = [with_known_types(child) for child in structure["children_spec"]]
    kind = structure["type"]
    if kind is None or kind in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        return {**structure, "children_spec": children}
    warnings.warn(
        f"the model returns a {kind}, which torch.utils._pytree does not know here: it becomes a tuple; "
        "import what registers it before loading to keep it",
        stacklevel=2,
    )
    return {"type": "builtins.tuple", "context": "null", "children_spec": children}


def read_report(folder: Path) -> dict[str, Any]:
    """The report's data; an artifact without it still runs, so its absence is no error."""
    path = folder / "report.json"
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"'{path}' is not valid JSON", why=str(error), fix="delete it, or save again"
        ) from error
    if not isinstance(found, dict):
        raise ArtifactError(
            f"'{path}' holds no report", why=f"it is a {type(found).__name__}", fix="delete it, or save again"
        )
    return found


def check_writable_file(path: Path) -> None:
    """Refuse early what could not be written at the end."""
    folder = path.parent
    if path.is_dir():
        raise ArtifactError(
            f"'{path}' is a folder", why="a file is to be written", fix="name a file, in it or elsewhere"
        )
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ArtifactError(
            f"cannot write to '{path}'", why=f"the folder '{folder}' does not exist or is read-only",
            fix="create it, or choose another",
        )  # fmt: skip


def check_onnx_file(path: Path) -> None:
    """Refuse early what is no name for an ONNX file, or could not be written at the end."""
    check_writable_file(path)
    if path.suffix != ".onnx":
        raise ArtifactError(
            f"'{path}' is no name for an ONNX file", why="engines and viewers know one by its ending",
            fix=f"write '{path.with_suffix('.onnx')}'",
        )  # fmt: skip


def described(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of the model, without what it says of the folder."""
    return {
        key: value for key, value in manifest.items() if key not in ("format", "stage", "signature", "files")
    }
