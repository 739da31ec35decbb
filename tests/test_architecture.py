"""The layers: a module imports its own layer or a lower one, and `import qcompiler` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "qcompiler"

# Where each top folder is imported from.
FOLDERS = {
    "qcompiler": "qcompiler",
    "passes": "qcompiler.passes",
    "backends": "qcompiler.backends",
    "models": "qcompiler.models",
}

# The position in the table is the layer. A name stands for the module and all that is inside it.
LAYERS = (
    ("qcompiler.errors", "qcompiler.progress", "qcompiler.warn"),
    ("qcompiler.numerics",),
    ("qcompiler.ir",),
    ("qcompiler.rewrite",),
    (
        "qcompiler.target",
        "qcompiler.recipe",
        "qcompiler.training_recipe",
        "qcompiler.plan",
        "qcompiler.artifact",
    ),
    ("qcompiler.tune",),
    ("qcompiler.passes",),
    ("qcompiler.backends",),
    (
        "qcompiler.api",
        "qcompiler.language",
        "qcompiler.generation",
        "qcompiler.region",
        "qcompiler.training",
        "qcompiler.dynamo",
        "qcompiler.qat",
        "qcompiler.engines",
        "qcompiler.job",
        "qcompiler.proof",
        "qcompiler.manifest",
        "qcompiler.evidence",
        "qcompiler.steps",
        "qcompiler.report",
        "qcompiler.cli",
        "qcompiler.__main__",
        "qcompiler.demo",
        "qcompiler.optim",
        "qcompiler.models",
    ),
)
TOP = len(LAYERS) - 1

# Only the top layer imports these, and they import nothing of the package but themselves.
LEAVES = ("qcompiler.models",)

HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "tvm", "matplotlib", "transformers", "sklearn")


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer(module: str) -> int | None:
    return next((number for number, names in enumerate(LAYERS) if within(module, *names)), None)


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every Python file of the package under the name it is imported by; links are not followed."""
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import: at the top, inside a function, under TYPE_CHECKING."""
    base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*start, node.module] if node.module else start)
            # `from qcompiler import ir` imports qcompiler.ir; any other module's own name tells its layer.
            yield from (
                (node.lineno, f"{source}.{alias.name}" if source == PACKAGE else source)
                for alias in node.names
            )


def refusal(module: str, name: str) -> str | None:
    """Why `module` may not import `name`; None where it may."""
    if within(name, *FOLDERS) and not within(name, PACKAGE):
        return f"imports {name}; outside this repository that is somebody else's module: say {PACKAGE}.{name}"
    if not within(name, PACKAGE):
        return None
    leaf = next((leaf for leaf in LEAVES if within(module, leaf)), None)
    if leaf and not within(name, leaf):
        return f"imports {name}; {leaf} knows nothing of the compiler"
    own, other = layer(module), layer(name)
    if other is None:  # a name that `qcompiler/__init__.py` offers, and so all that stands behind it
        other = TOP
    if own is None or other <= own:
        return None
    return f"(layer {own}) imports {name} (layer {other}); a lower layer never imports a higher one"


def violations(root: Path) -> list[str]:
    found = []
    for module, path in modules(root):
        if module == PACKAGE:
            continue  # the front door: it offers the top layer, lazily
        where = path.relative_to(root).as_posix()
        if layer(module) is None:
            found.append(
                f"{where} is in no layer; give {module} its place in LAYERS in tests/test_architecture.py."
            )
        found += [
            f"{where}:{line} {why}."
            for line, name in imports(module, path)
            if (why := refusal(module, name)) is not None
        ]
    return list(dict.fromkeys(found))


def test_every_module_imports_its_own_layer_or_a_lower_one() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(["", *found])


def test_every_folder_is_looked_at() -> None:
    seen = {path.relative_to(ROOT).parts[0] for _, path in modules(ROOT)}
    assert seen == set(FOLDERS)


def plant(root: Path, where: str, source: str) -> None:
    path = root / where
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")


@pytest.mark.parametrize(
    ("where", "source", "why"),
    [
        (
            "qcompiler/numerics/x.py",
            "import qcompiler.ir.spec",
            "(layer 1) imports qcompiler.ir.spec (layer 2)",
        ),
        ("qcompiler/numerics/x.py", "from qcompiler import ir", "(layer 1) imports qcompiler.ir (layer 2)"),
        ("qcompiler/numerics/x.py", "from ..ir import spec", "(layer 1) imports qcompiler.ir (layer 2)"),
        (
            "qcompiler/numerics/__init__.py",
            "from ..ir import spec",
            "(layer 1) imports qcompiler.ir (layer 2)",
        ),
        ("qcompiler/x/y.py", "from .. import ir", "qcompiler/x/y.py is in no layer"),
        (
            "qcompiler/errors.py",
            "def f():\n    from qcompiler.plan import Plan",
            "errors.py:2 (layer 0) imports",
        ),
        (
            "qcompiler/ir/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qcompiler.tune import cost",
            "(layer 2) imports qcompiler.tune (layer 5)",
        ),
        (
            "passes/rules/x.py",
            "from qcompiler.backends.base import Backend",
            "(layer 6) imports qcompiler.backends",
        ),
        ("passes/x.py", "from qcompiler import compile", "(layer 6) imports qcompiler.compile (layer 8)"),
        ("passes/x.py", "import qcompiler", "(layer 6) imports qcompiler (layer 8)"),
        (
            "backends/ort/x.py",
            "from qcompiler.models import build",
            "(layer 7) imports qcompiler.models (layer 8)",
        ),
        (
            "models/x.py",
            "from qcompiler.errors import Failure",
            "qcompiler.models knows nothing of the compiler",
        ),
        ("models/x.py", "from ..numerics import formats", "qcompiler.models knows nothing of the compiler"),
        ("passes/x.py", "from passes import fuse", "say qcompiler.passes"),
        ("backends/x.py", "import backends.ort as ort", "say qcompiler.backends.ort"),
        ("qcompiler/cli.py", "def f():\n    import models", "say qcompiler.models"),
        ("qcompiler/mystery.py", "", "qcompiler/mystery.py is in no layer; give qcompiler.mystery its place"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, where: str, source: str, why: str) -> None:
    plant(tmp_path, where, source)
    assert any(why in found for found in violations(tmp_path)), violations(tmp_path)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("qcompiler/__init__.py", "from qcompiler.api import compile"),
        (
            "qcompiler/ir/x.py",
            "from qcompiler.ir import spec\nfrom .ops import quantize\nfrom qcompiler import errors",
        ),
        ("passes/x.py", "from qcompiler.passes.fuse import fuse\nimport qcompiler.tune.cost"),
        ("backends/ort/x.py", "from qcompiler.backends.reference import run\nimport onnxruntime"),
        ("qcompiler/cli.py", "import qcompiler\nfrom qcompiler import compile, models"),
        ("models/x.py", "from qcompiler.models.bundle import Bundle\nfrom . import data\nimport torch"),
        ("passes/x.py", "import transformers.models\nimport modelscope"),
    ],
)
def test_what_the_layers_allow_is_not_reported(tmp_path: Path, where: str, source: str) -> None:
    plant(tmp_path, where, source)
    assert violations(tmp_path) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    plant(tmp_path, "passes/x.py", "")
    (tmp_path / "qcompiler").mkdir()
    (tmp_path / "qcompiler" / "passes").symlink_to(Path("..") / "passes")
    assert [module for module, _ in modules(tmp_path)] == ["qcompiler.passes.x"]


def test_importing_the_package_stays_light() -> None:
    question = f"import sys, qcompiler; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []
