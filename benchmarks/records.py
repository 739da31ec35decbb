"""What every benchmark writes down beside its figures: the commit, the machine, the versions, and tables."""

import importlib.metadata
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qcompiler.target.machine import this_cpu


def commit() -> str:
    """The commit that was measured; `-dirty` behind it where files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    cpu = this_cpu()
    return {"cpu": cpu.name, "features": list(cpu.features)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_down(result: Any, page: str, out: Path) -> None:
    """The JSON at a path, its page as Markdown beside it, and the page on the screen."""
    keep(result, page, out)
    print(page)


def keep(result: Any, page: str, out: Path) -> None:
    """The JSON at a path, and its page as Markdown beside it: whole whenever the process ends."""
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = {".json": json.dumps(result, indent=1, sort_keys=True) + "\n", ".md": page}
    for suffix, text in texts.items():
        file = out.with_suffix(suffix)
        new = file.with_name(f"{file.name}.new")
        new.write_text(text)
        new.replace(file)
