"""Rows that came with the package, one file for each device: a place to begin where nothing was measured.

They are lines as `qcompiler.tune.database` writes them, each for the device that it names.
"""

from collections.abc import Iterable
from pathlib import Path

from qcompiler.tune.database import Core, Row, from_text, to_text

FOLDER = Path(__file__).parents[1] / "shipped"


def shipped(core: Core, folder: Path = FOLDER) -> list[Row]:
    """The rows of a device; none where it has no file."""
    file = file_of(core, folder)
    return [row for row in from_text(file.read_text()) if row.core == core] if file.is_file() else []


def ship(rows: Iterable[Row], folder: Path = FOLDER) -> list[Path]:
    """Write rows to the files of their devices; one of the same workload and configuration is replaced."""
    held: dict[Path, dict[tuple[str, ...], Row]] = {}
    for row in rows:
        file = file_of(row.core, folder)
        if file not in held:
            held[file] = {key(old): old for old in (from_text(file.read_text()) if file.is_file() else ())}
        held[file][key(row)] = row
    folder.mkdir(exist_ok=True)
    for file, found in held.items():
        file.write_text(to_text(found.values()))
    return [*held]


def file_of(core: Core, folder: Path = FOLDER) -> Path:
    """ "NVIDIA H100 80GB HBM3, 132 processors"  -->  NVIDIA-H100-80GB-HBM3.jsonl"""
    name = core.processor.partition(",")[0]
    return folder / f"{'-'.join(name.replace('/', ' ').split())}.jsonl"


def key(row: Row) -> tuple[str, ...]:
    return row.workload, row.configuration, row.isa, row.processor
