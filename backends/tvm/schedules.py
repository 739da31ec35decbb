"""Which schedule a layer gets: what measured best on this processor, or what costs least on paper.

layer  -->  workload (text)  -->  the fastest row of the database, else one shipped here, else the prediction

Rows of these versions come first, wherever they are: after an upgrade one shipped goes before those of the
database, until `qcompiler tune` has measured again.

A row chooses among the schedules of a template's space, all of which compute the same numbers, and its time
among fusions that do as well (`fusions.py`). So no row can be wrong, only slow, and reading one executes
nothing.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from qcompiler.backends.tvm import tiles
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile, convolution
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, Patch, depthwise
from qcompiler.backends.tvm.plane import Plane
from qcompiler.errors import InputError, TuningError
from qcompiler.tune.database import Core, Row, from_text, is_of, ranked, read_rows

SHIPPED = Path(__file__).parent / "shipped"  # one file of rows per processor


class Choose(Protocol):
    """What lowering asks about a layer."""

    def __call__(self, layer: Any) -> Any:
        """Its schedule."""

    def row(self, layer: Any) -> Row | None:
        """What was measured of it, with the best of its schedules."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A family of kernels whose schedule is open; `products` are multiply-accumulates of a layer."""

    schedule: type
    workload: Callable[[Any], str]
    space: Callable[[Any, Isa], Iterable[Any]]
    cost: Callable[[Any, Any, Isa], float]
    build: Callable[[Any, Any, Isa, str], Any]
    products: Callable[[Any], int]


def as_text(layer: Convolution | Depthwise) -> str:
    """All of a layer that its time depends on; borders, padding and zero points do not count."""
    words = [type(layer).__name__.lower(), f"{pixels(layer.x)} -> {pixels(layer.y)}"]
    words += [f"kernel {across(layer.kernel)}", f"stride {across(layer.stride)}"]
    if layer.dilation != (1, 1):
        words.append(f"dilation {across(layer.dilation)}")
    if isinstance(layer, Convolution):
        told = {
            f"groups {layer.groups}": layer.groups > 1, "residual": layer.residual is not None,
            "table": layer.table, "to float": layer.to_float, "addend": layer.addend is not None,
            "ranged": layer.ranged, "offset": layer.offset,
        }  # fmt: skip
        words += [word for word, holds in told.items() if holds]
    return ", ".join(words)


def pixels(plane: Plane) -> str:
    gaps = f"/{plane.pitch}" if plane.pitch != plane.channels else ""
    return f"{plane.images}x{plane.height}x{plane.width}x{plane.channels}{gaps}"


def outputs(plane: Plane) -> int:
    return plane.images * plane.height * plane.width * plane.channels


def across(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}x{numbers[1]}"


TEMPLATES: Mapping[type, Template] = {
    Convolution: Template(
        schedule=Tile, workload=as_text, space=tiles.space, cost=tiles.cost, build=convolution,
        products=lambda layer: int(layer.products),
    ),
    Depthwise: Template(
        schedule=Patch, workload=as_text, space=tiles.patches, cost=tiles.patch_cost, build=depthwise,
        products=lambda layer: outputs(layer.y) * layer.kernel[0] * layer.kernel[1],
    ),
}  # fmt: skip


def template_of(layer: Any) -> Template:
    return TEMPLATES[type(layer)]


def workload(layer: Any) -> str:
    return template_of(layer).workload(layer)


def ordered(layer: Any, isa: Isa) -> list[Any]:
    """All schedules of a layer, the one that costs least on paper first."""
    template = template_of(layer)
    return sorted(template.space(layer, isa), key=lambda schedule: template.cost(layer, schedule, isa))


def predicted(layer: Any, isa: Isa) -> Any:
    """The schedule that costs least on paper; raises InputError for a layer without outputs."""
    if outputs(layer.y) == 0:
        raise InputError(
            "the inputs leave a layer nothing to compute", why=f"it is {workload(layer)}",
            fix="pass at least one sample",
        )  # fmt: skip
    return ordered(layer, isa)[0]


def written(schedule: Any) -> str:
    """As the text of a row: Tile(rows=7, columns=2, channels_first=True)  -->  7x2, channels first"""
    values = asdict(schedule)
    numbers = [str(value) for value in values.values() if not isinstance(value, bool)]
    return ", ".join(
        ["x".join(numbers), *(name.replace("_", " ") for name in values if values[name] is True)]
    )


def parsed(text: str, layer: Any, isa: Isa) -> Any | None:
    """The schedule of a row; None if it is not in the layer's space, as one of another version may not be."""
    return next((known for known in template_of(layer).space(layer, isa) if written(known) == text), None)


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """The rows of every workload that has been measured, the best first."""

    isa: Isa
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    def __call__(self, layer: Any) -> Any:
        found = self.best(layer)
        return predicted(layer, self.isa) if found is None else found[1]

    def row(self, layer: Any) -> Row | None:
        found = self.best(layer)
        if found is None or not is_of(found[0], versions()):  # others do not compare
            return None
        return found[0]

    def best(self, layer: Any) -> tuple[Row, Any] | None:
        """The first row that names a schedule of the layer's space, and the schedule."""
        rows = self.rows.get(workload(layer), ())
        found = ((row, parsed(row.configuration, layer, self.isa)) for row in rows)
        return next(((row, schedule) for row, schedule in found if schedule is not None), None)


def measured_by(choose: Choose) -> Mapping[str, str]:
    """Workload -> configuration, of everything that has rows; nothing where schedules come from elsewhere."""
    if not isinstance(choose, Schedules):
        return {}
    return {name: rows[0].configuration for name, rows in choose.rows.items()}


def read_schedules(isa: Isa, processor: str, path: Path | None) -> Schedules:
    """The rows of a database and those shipped; if it cannot be read, it is left out with a warning."""
    core = Core(isa=isa.name, processor=processor)
    read: Sequence[Row] = ()
    if path is not None:
        try:
            read = read_rows(path, core)
        except TuningError as error:
            warnings.warn(f"{error}; meanwhile schedules are those shipped and predicted", stacklevel=3)
    return schedules_of(isa, core, read)


def schedules_of(isa: Isa, core: Core, read: Iterable[Row]) -> Schedules:
    """The rows of a database and those shipped: of these versions first, and then those of the database."""
    now = versions()
    found: dict[str, list[Row]] = {}
    for row in sorted([*ranked(read, now), *ranked(shipped(core), now)], key=lambda row: not is_of(row, now)):
        found.setdefault(row.workload, []).append(row)
    return Schedules(isa=isa, rows=found)


def shipped(core: Core, folder: Path = SHIPPED) -> list[Row]:
    """The rows that came with the package for a processor."""
    file = folder / f"{core.processor}.jsonl"
    return [row for row in from_text(file.read_text()) if row.core == core] if file.is_file() else []


@cache
def versions() -> Mapping[str, str]:
    """What a time depends on besides the machine."""
    return {
        "compiler": f"tvm {importlib.metadata.version('apache-tvm')}",
        "qcompiler": importlib.metadata.version("qcompiler"),
    }
