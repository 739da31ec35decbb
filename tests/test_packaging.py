"""What is installed is what is in the tree."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]  # package -> folder


def files() -> Iterator[tuple[str, Path]]:
    """Every file in the mapped folders, with the package that owns it; a link that became text is not one."""
    links = {ROOT / package.replace(".", "/") for package in FOLDERS if "." in package}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path not in links and "__pycache__" not in path.parts:
                owner = path.parent
                while not (owner / "__init__.py").exists() and owner != ROOT / folder:
                    owner = owner.parent
                yield ".".join((package, *owner.relative_to(ROOT / folder).parts)), path


def folder_of(package: str) -> Path:
    root = max((known for known in FOLDERS if f"{package}.".startswith(f"{known}.")), key=len)
    return ROOT / FOLDERS[root] / package.removeprefix(root).replace(".", "/").lstrip("/")


def test_the_package_list_is_the_tree() -> None:
    in_tree = {package for package, path in files() if path.name == "__init__.py"}
    assert sorted(SETUPTOOLS["packages"]) == sorted(in_tree)


def test_every_python_file_is_in_a_package() -> None:
    lost = [
        str(path.relative_to(ROOT))
        for package, path in files()
        if path.suffix == ".py" and path.parent != folder_of(package)
    ]
    assert lost == [], "their folders have no __init__.py, so they are not installed"


def test_every_data_file_is_installed() -> None:
    patterns: dict[str, list[str]] = SETUPTOOLS["package-data"]
    lost = [
        str(path.relative_to(ROOT))
        for package, path in files()
        if path.suffix != ".py"
        and not any(
            fnmatch(path.relative_to(folder_of(package)).as_posix(), pattern)
            for pattern in [*patterns["*"], *patterns.get(package, [])]
        )
    ]
    assert lost == [], "no pattern in [tool.setuptools.package-data] takes them into the wheel"


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "qcompiler" / "py.typed").is_file()


@pytest.mark.parametrize("package", [package for package in FOLDERS if "." in package])
def test_the_links_stand_for_the_folders(package: str) -> None:
    """A checkout without links holds the target as text; either way it must name the folder."""
    link = ROOT / package.replace(".", "/")
    if link.is_symlink():
        assert link.readlink() == Path("..") / FOLDERS[package]
    elif link.exists():
        assert link.read_text(encoding="utf-8") == f"../{FOLDERS[package]}"


def test_every_dependency_is_pinned_by_the_constraints() -> None:
    """What setup installs is what was proven together, and torch is never left to choice."""
    project = PYPROJECT["project"]
    asked = [
        *project["dependencies"],
        *(spec for extra in project["optional-dependencies"].values() for spec in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    names = {normal(Requirement(spec).name) for spec in asked} - {project["name"]}
    assert names <= pinned, f"constraints.txt has no pin for {sorted(names - pinned)}"


def normal(name: str) -> str:
    return name.lower().replace("_", "-")
