"""The documentation is true: its Python runs, its links lead somewhere, its tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qcompiler.cli.app import VERBS
from qcompiler.models import names
from qcompiler.recipe import RECIPES, WEIGHT_METHODS, find_recipe
from qcompiler.target import find_target
from qcompiler.target.machine import this_cpu
from qcompiler.training.memory import BITS
from qcompiler.training_recipe import TRAINING_RECIPES
from tests.test_architecture import LAYERS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
EXTENDING = ROOT / "docs/extending.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page.name} has no section '{title}'"
    return found[1]


def first_column(table: str) -> list[str]:
    rows = [line.strip("|").split("|")[0].strip() for line in table.splitlines() if line.startswith("|")]
    return [cell.strip("`") for cell in rows[2:]]


Run = Callable[[str], str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """What code prints in an empty folder, with names of its own; here, where torch is read already."""

    def printed(code: str) -> str:
        monkeypatch.chdir(tmp_path)
        exec(code, {"__name__": "__main__"})
        return capfd.readouterr().out

    return printed


def run_apart(code: str, folder: Path) -> str:
    """What a program prints that begins with nothing; one thread, since other tests run beside it."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- code


def test_the_code_of_the_readme_runs_as_written(tmp_path: Path) -> None:
    """All blocks in one program, in order; what it prints is what the page claims, figures of time aside.

    In a process of its own: it begins as a reader does, with nothing imported. How many layers are planned is
    a matter of time as well: the speed guard takes one back that seems slower on a busy machine.
    """
    printed = run_apart("\n".join(blocks(README)), tmp_path)
    assert len(re.findall(r"(\d+) of \1 planned layers run in integers", printed)) == 2
    assert [line.split("]")[0] for line in printed.splitlines() if re.match(r"\[\d+, 10\]", line)] == [
        "[1, 10", "[3, 10", "[17, 10", "[5, 10"
    ]  # fmt: skip
    assert "head/linear                      planned int8   runs as QGemm" in printed
    assert "(5, 10)\n" in printed
    assert printed.count("float, because its operand") == 2


@pytest.mark.skipif(
    not {"avx2", "fma"} <= {*this_cpu().features}, reason="this CPU has no kernels of our own that run"
)
def test_the_code_of_the_page_on_kernels_of_our_own_runs_as_written(run: Run) -> None:
    printed = run("\n".join(blocks(ROOT / "docs/tvm.md")))
    assert "TVM" in printed and "0 LSB" in printed


@pytest.mark.skipif(
    not {"avx2", "fma"} <= {*this_cpu().features}, reason="this CPU has no kernels of our own that run"
)
def test_the_code_of_the_page_on_deployment_runs_as_written(run: Run) -> None:
    assert run("\n".join(blocks(ROOT / "docs/deploy.md"))).endswith("(1, 10) float32\n")


def test_the_code_of_the_page_on_tuning_runs_as_written(run: Run) -> None:
    printed = run("\n".join(blocks(ROOT / "docs/tuning.md")))
    assert printed.endswith("stride 1x1 | 7x2, channels first, prefetch\n")


def test_the_code_of_the_page_on_regions_runs_as_written(run: Run) -> None:
    """Both ways into region mode find both regions and the branch between them."""
    printed = run("\n".join(blocks(ROOT / "docs/regions.md")))
    assert printed.count("Breaks") == 2 and printed.count("region 1 at ") == 2


def test_target_and_backend_of_the_extension_page_run_as_written(tmp_path: Path) -> None:
    """The target keeps linears alone; `compile` knows the backend, which agrees with the reference.

    In a process of its own, since both stay registered.
    """
    found = [block for block in blocks(EXTENDING) if "register_target(replace" in block or "Eager" in block]
    assert len(found) == 3
    printed = run_apart("\n".join(found), tmp_path)
    assert re.search(r"0/conv2d +float .*\n(.*\n)*.*3/linear +int8 +MatMulIntegerToFloat", printed)
    name, distance = printed.splitlines()[-1].split()
    assert name == "eager" and float(distance) < 1e-3


def test_the_code_of_the_language_page_runs_as_written(run: Run) -> None:
    printed = run("\n".join(blocks(ROOT / "docs/language-models.md")))
    assert [len(line.split()) for line in printed.splitlines()] == [8, 8]


def test_the_code_of_the_page_on_optimizers_runs_as_written(run: Run) -> None:
    printed = run("\n".join(blocks(ROOT / "docs/optimizers.md")))
    assert printed.endswith("2.031 bytes of state per weight\n")


def test_the_code_of_the_page_on_training_runs_as_written(run: Run) -> None:
    printed = run("\n".join(blocks(ROOT / "docs/training.md")))
    (shown,) = blocks(ROOT / "docs/training.md", "text")
    assert printed.splitlines()[0] == shown.splitlines()[0] and "One step against float" in printed
    rows = re.search(r"^(\d+) rows fit", printed, re.MULTILINE)
    assert rows is not None and int(rows[1]) > 1


def test_the_tables_of_the_page_on_training_are_those_of_the_code() -> None:
    page = ROOT / "docs/training.md"
    assert first_column(section(page, "Memory: what crosses into backward"))[: len(BITS)] == [*BITS]
    assert first_column(section(page, "Recipes: how products are computed")) == [*TRAINING_RECIPES]


def test_the_code_of_the_page_on_gpus_runs_as_written(run: Run) -> None:
    """On the CPU: an error of about a percent is what 8 bits for each row leave."""
    printed = run("\n".join(blocks(ROOT / "docs/gpu.md")))
    found = re.search(r"^error (0\.\d{3})$", printed, re.MULTILINE)
    assert found is not None and 0 < float(found[1]) < 0.02
    assert "int8-dynamic on Triton" in printed


def test_the_code_of_the_page_on_training_with_quantization_runs_as_written(run: Run) -> None:
    printed = run("\n".join(blocks(ROOT / "docs/qat.md")))
    loss = re.match(r"loss (\d\.\d\d)\nclasses agree: True\n", printed)
    assert loss is not None and float(loss[1]) < 0.5


def test_the_recipes_of_the_recipe_page_are_recipes(tmp_path: Path) -> None:
    (code,), (written,) = blocks(ROOT / "docs/recipes.md"), blocks(ROOT / "docs/recipes.md", "json")
    exec(code, {})
    path = tmp_path / "mine.json"
    path.write_text(written)
    assert find_recipe(path).for_layer("layer4.0").activations is None


def test_the_code_of_the_weights_page_runs_as_written(run: Run) -> None:
    """The best candidate is the one kept; by GPTQ, as the page shows."""
    (code,) = blocks(ROOT / "docs/weights.md")
    lines = run(code).splitlines()
    assert [line.split()[0] for line in lines] == ["linear", "linear_1"]
    assert all(line.split()[1].startswith("gptq") and "'nearest': 2" in line for line in lines)


# ---------------------------------------------------------------- links, words


@every_page
def test_links_lead_to_files(page: Path) -> None:
    targets = [
        link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link
    ]
    assert [link for link in targets if link and not (page.parent / link).exists()] == []


@every_page
def test_named_files_exist(page: Path) -> None:
    """`folder/file.py` names a file of the repository, from its top or within the package."""
    named = set(re.findall(r"`((?:[\w.]+/)+\w+\.(?:py|md|toml))`", text(page))) - {"benchmarks/README.md"}
    assert [
        name for name in named if not any((ROOT / top / name).exists() for top in ("", "qcompiler"))
    ] == []


@every_page
def test_verbs_exist(page: Path) -> None:
    used = set(re.findall(r"(?:^ {4}(?:\$ )?|`)qcompiler ([a-z-]+)", text(page), re.MULTILINE))
    assert used <= set(VERBS)


@every_page
def test_no_page_names_a_folder_of_one_machine(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(?:home|work|tmp|root|Users)/", text(page))


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"\((\d{3}-[\w-]+\.md)\)", text(folder / "README.md"))
    assert listed == sorted(page.name for page in folder.glob("[0-9]*.md"))


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("page", "title"), [("README.md", "Recipes"), ("docs/recipes.md", "Recipes")], ids=["README", "recipes"]
)
def test_the_recipes_are_those_of_the_table(page: str, title: str) -> None:
    assert first_column(section(ROOT / page, title)) == [*RECIPES]


def test_the_figures_of_the_recipes_are_those_of_the_table() -> None:
    rows = [
        line.strip("| ").split(" | ") for line in section(ROOT / "docs/recipes.md", "Recipes").splitlines()
    ]
    for cells in (cells for cells in rows if cells[0].strip("`") in RECIPES):
        recipe = RECIPES[cells[0].strip("`")]
        formats = tuple({"target": "the target's", None: "float"}.get(name, name)
                        for name in (recipe.weights, recipe.activations))  # fmt: skip
        assert tuple(cell.split(" (")[0] for cell in cells[1:3]) == formats
        partly = "where better" if recipe.dynamic_where_better else "no"
        assert cells[3] == ("yes" if recipe.dynamic else partly)
        assert cells[4] == (str(recipe.group_size) if recipe.group_size else "per channel")
        assert cells[5] == ("off" if recipe.smooth is None else str(recipe.smooth))
        assert cells[6] == ("yes" if recipe.bias_correction else "no")


def test_the_weight_methods_are_those_of_the_recipe() -> None:
    assert first_column(section(ROOT / "docs/weights.md", "Weights in few bits")) == [*WEIGHT_METHODS]


def test_the_models_are_those_of_the_registry() -> None:
    assert first_column(section(README, "Built-in models")) == [*names()]


def test_every_verb_is_described() -> None:
    cells = first_column(text(ROOT / "docs/cli.md").split("## MODEL")[0])
    assert {cell.split()[1] for cell in cells if cell.startswith("qcompiler ")} == set(VERBS)


def test_every_kernel_of_the_target_is_described() -> None:
    page = text(ROOT / "docs/ort.md")
    cpu = find_target("cpu")
    kernels = {row.kernel for row in cpu.rows} | {entry.kernel for entry in cpu.weight_only}
    assert [kernel for kernel in (*kernels, cpu.dynamic_kernel) if f"`{kernel}`" not in page] == []


def test_the_layers_are_those_that_are_enforced() -> None:
    rows = [
        line.split("|")[1:3]
        for line in section(ROOT / "docs/architecture.md", "Layers").splitlines()
        if re.match(r"\| \d", line)
    ]
    assert [tuple(re.findall(r"`([\w.]+)`", where)) for _, where in rows] == [*LAYERS]
    assert [int(number) for number, _ in rows] == [*range(len(LAYERS))]
