"""Schedules of layers: chosen on paper, measured, kept, read again, and measured by others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from qcompiler.backends.tvm import schedules
from qcompiler.backends.tvm.isa import AVX512_VNNI, ISAS, Isa
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile
from qcompiler.backends.tvm.kernels.depthwise import Depthwise
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.schedules import (
    SHIPPED,
    ordered,
    parsed,
    predicted,
    read_schedules,
    schedules_of,
    versions,
    workload,
    written,
)
from qcompiler.backends.tvm.tuning import Lost, jobs, known, tune
from qcompiler.errors import TuningError
from qcompiler.tune.database import Core, Database, Row, from_text, open_database

ISA, CORE = AVX512_VNNI, Core(isa=AVX512_VNNI.name, processor="imaginary")


def layer(channels: int, **more: Any) -> Convolution:
    x = Plane(images=1, height=6, width=7, channels=channels, pitch=channels, border=1)
    return Convolution(x=x, y=replace(x, border=0), kernel=(3, 3), padding=(1, 1), **more)


LAYERS = [layer(channels) for channels in (16, 32, 48, 64)]


class Bench:
    """Pretends that of every four schedules the second is the fastest, and the first 1 % behind it."""

    def __init__(self, layer: Any, schedules: Sequence[Any], isa: Isa) -> None:
        self.schedules = schedules

    def sample(self, index: int) -> float:
        return 1.0 + (3 * index + 1) % 4 / 100


def run(database: Database, layers: Sequence[Any], trials: int = 4, **options: Any) -> int:
    waiting = jobs(layers, database.rows(CORE), CORE, ISA, trials)
    return tune(waiting, database, lambda: [Bench], CORE, ISA, **options)


# ---------------------------------------------------------------- workloads and schedules


def test_the_workload_is_what_the_time_depends_on() -> None:
    one = layer(16)
    assert workload(one) == "convolution, 1x6x7x16 -> 1x6x7x16, kernel 3x3, stride 1x1"
    assert workload(replace(one, shifted=True)) == workload(one)
    assert workload(replace(one, y=replace(one.y, border=2))) == workload(one)
    others = [
        replace(one, stride=(2, 1)), replace(one, residual=one.y), replace(one, to_float=True),
        replace(one, dilation=(1, 2)), replace(one, groups=4), replace(one, x=replace(one.x, pitch=32)),
        replace(one, y=replace(one.y, pitch=32)), replace(one, kernel=(3, 1)), replace(one, table=True),
        replace(one, addend=one.y), replace(one, ranged=True), replace(one, offset=True),
        Depthwise(x=one.x, y=one.y, kernel=(3, 3)),
    ]  # fmt: skip
    assert len({workload(one), *map(workload, others)}) == len(others) + 1
    names = {field.name for field in fields(Convolution)}
    convolutions = [other for other in others if isinstance(other, Convolution)]
    changed = {name for name in names for other in convolutions if getattr(other, name) != getattr(one, name)}
    assert names - changed == {"padding", "shifted"}


def row(layer: Any, configuration: str, **more: Any) -> Row:
    return Row(
        workload=workload(layer), configuration=configuration, spread=0.0, rounds=12,
        **{"isa": CORE.isa, "processor": CORE.processor, "seconds": 1.0, **versions(), **more},
    )  # fmt: skip


def test_a_row_chooses_within_the_space_and_nowhere_else() -> None:
    one = LAYERS[0]
    wanted = ordered(one, ISA)[-1]
    assert written(Tile(rows=7, columns=2, channels_first=True)) == "7x2, channels first"
    assert len(set(map(written, ordered(one, ISA)))) == len(ordered(one, ISA))

    def chosen(text: str) -> Any:
        return schedules_of(ISA, CORE, [row(one, text)])(one)

    assert chosen(written(wanted)) == wanted
    for text in ("", "1000000x1, channels first", "7x2, channels first, and more"):
        assert chosen(text) == predicted(one, ISA)


def test_rows_of_these_versions_go_first_and_among_them_those_of_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path = LAYERS[0], tmp_path / "rows.db"
    guess, mine, other, slow = ordered(one, ISA)[:4]

    def chosen(read: Sequence[Row], packed: Sequence[Row]) -> tuple[Any, float | None]:
        """The schedule, and the seconds of the row that fusions are weighed by."""
        path.unlink(missing_ok=True)
        with open_database(path) as database:
            database.add(read)
        monkeypatch.setattr(schedules, "shipped", lambda core: list(packed))
        found = read_schedules(ISA, CORE.processor, path)
        measured = found.row(one)
        return found(one), None if measured is None else measured.seconds

    ours, theirs = row(one, written(mine), seconds=2.0), row(one, written(other))
    old, gone = replace(ours, compiler="tvm 0.1", seconds=0.5), row(one, "1000000x1", seconds=0.1)
    assert chosen([ours], [theirs]) == (mine, 2.0)
    assert chosen([old], [theirs]) == (other, 1.0)  # after an upgrade
    assert chosen([old], [replace(theirs, compiler="tvm 0.1", seconds=0.1)]) == (mine, None)
    assert chosen([gone], [theirs]) == (other, 1.0)  # a schedule that has left the space
    assert chosen([gone, row(one, written(slow), seconds=3.0)], [theirs]) == (slow, 3.0)
    assert chosen([replace(gone, compiler="tvm 0.1")], []) == (guess, None)


def test_rows_of_a_processor_come_with_the_package() -> None:
    file = min(SHIPPED.glob("*.jsonl"))
    first = from_text(file.read_text())[0]
    found = read_schedules(replace(ISA, name=first.isa), first.processor, None)
    assert found.rows[first.workload] == [first]


def test_a_database_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_bytes(b"nothing" * 1000)
    with pytest.warns(UserWarning, match=r"rows.db' is damaged.*meanwhile schedules are those shipped"):
        assert read_schedules(ISA, CORE.processor, path).rows == {}
    assert path.read_bytes() == b"nothing" * 1000


def layer_of(text: str) -> Convolution | Depthwise:
    """The layer of a workload, as far as its time depends on it."""
    kind, planes, *words = text.split(", ")
    x, y = map(plane_of, planes.split(" -> "))
    across = {word.split()[0]: tuple(map(int, word.split()[1].split("x"))) for word in words if "x" in word}
    if kind == "depthwise":
        return Depthwise(x=x, y=y, **across)  # type: ignore[arg-type]  # pairs
    marks: dict[str, Any] = {word.replace(" ", "_"): True for word in words if "x" not in word}
    if "residual" in marks:
        marks["residual"] = y
    return Convolution(x=x, y=y, **across, **marks)  # type: ignore[arg-type]  # pairs


def plane_of(text: str) -> Plane:
    numbers, _, pitch = text.partition("/")
    images, height, width, channels = map(int, numbers.split("x"))
    return Plane(images=images, height=height, width=width, channels=channels, pitch=int(pitch or channels))


def test_shipped_rows_are_schedules_of_their_layers() -> None:
    """Every one can be chosen: no row of an older space is shipped."""
    isas = {isa.name: isa for isa in ISAS}
    for file in SHIPPED.glob("*.jsonl"):
        rows = from_text(file.read_text())
        assert {row.processor for row in rows} == {file.stem}
        assert len({row.workload for row in rows}) == len(rows)
        for row in rows:
            layer = layer_of(row.workload)
            assert workload(layer) == row.workload
            assert parsed(row.configuration, layer, isas[row.isa]) is not None, row


# ---------------------------------------------------------------- tuning


def test_the_best_row_is_what_lowering_takes_and_a_second_model_reuses_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with open_database(path) as database:
        assert run(database, LAYERS[:3]) == 0
        rows = database.rows(CORE)
        assert len(rows) == 12 and {row.rounds for row in rows} == {12}
        assert [job.layer for job in jobs(LAYERS, rows, CORE, ISA, 4)] == LAYERS[3:]
        assert jobs(LAYERS[:1], rows, CORE, ISA, 5) != []  # more schedules than were tried
        told = known({LAYERS[0]: 2}, rows, ISA)
    best = ordered(LAYERS[0], ISA)[1]
    assert told[0].best.configuration == written(best) and told[0].best.seconds == 1.0
    assert told[0].predicted_seconds == 1.01 and told[0].calls == 2
    assert read_schedules(ISA, CORE.processor, path)(LAYERS[0]) == best
    assert read_schedules(ISA, "another", path)(LAYERS[0]) == predicted(LAYERS[0], ISA)


def test_rows_of_another_version_are_measured_again(tmp_path: Path) -> None:
    with open_database(tmp_path / "rows.db") as database:
        run(database, LAYERS[:1])
        old = [replace(row, compiler="tvm 0.1") for row in database.rows()]
        database.add(old)
        assert len(jobs(LAYERS[:1], database.rows(), CORE, ISA, 4)) == 1


def test_the_budget_of_time_ends_between_layers(tmp_path: Path) -> None:
    now = iter(range(1000))
    with open_database(tmp_path / "rows.db") as database:
        assert run(database, LAYERS, until=20.0, clock=lambda: float(next(now))) == 2
        assert run(database, LAYERS) == 0


def test_who_is_lost_is_replaced_and_only_its_layer_is_measured_again(tmp_path: Path) -> None:
    begun: list[Any] = []
    other_has_work = threading.Event()

    def steady(layer: Any, schedules: Sequence[Any], isa: Isa) -> Bench:
        begun.append(layer)
        other_has_work.wait(10)
        return Bench(layer, schedules, isa)

    def dying(layer: Any, schedules: Sequence[Any], isa: Isa) -> Bench:
        begun.append(layer)
        other_has_work.set()
        raise Lost

    with open_database(tmp_path / "rows.db") as database:
        waiting = jobs(LAYERS, [], CORE, ISA, 4)
        assert tune(waiting, database, lambda: [steady, dying], CORE, ISA) == 0
        assert len(database.rows()) == 16
    assert len(begun) == 5 and set(begun) == set(LAYERS)


def test_when_nobody_is_left_what_was_measured_stays(tmp_path: Path) -> None:
    crews = iter([2, 1])

    def crew() -> list[Any]:
        """One server that measures two layers and is lost, a second that is lost at once, and then nobody."""
        turns = next(crews, None)
        if turns is None:
            raise TuningError("no server is left")

        def prepare(layer: Any, schedules: Sequence[Any], isa: Isa) -> Bench:
            nonlocal turns
            assert turns is not None
            turns -= 1
            if turns < 0:
                raise Lost
            return Bench(layer, schedules, isa)

        return [prepare]

    with open_database(tmp_path / "rows.db") as database:
        with pytest.raises(TuningError, match="no server is left"):
            tune(jobs(LAYERS, [], CORE, ISA, 4), database, crew, CORE, ISA)
        assert len({row.workload for row in database.rows()}) == 3


def test_who_is_lost_again_and_again_is_asked_no_more(tmp_path: Path) -> None:
    """Three times without a row between; one that is kept in between counts anew."""
    asked: list[int] = []
    keeping = [0, 0, 1, 0, 0, 0]

    def crew() -> list[Any]:
        assert len(asked) < len(keeping), "asked without end"
        asked.append(keeping[len(asked)])
        turns = iter(range(asked[-1]))

        def prepare(layer: Any, schedules: Sequence[Any], isa: Isa) -> Bench:
            if next(turns, None) is None:
                raise Lost("the line is dead")
            return Bench(layer, schedules, isa)

        return [prepare]

    with open_database(tmp_path / "rows.db") as database:
        with pytest.raises(
            TuningError, match=r"lost 3 times in a row, because the line is dead.*rows are kept"
        ):
            tune(jobs(LAYERS, [], CORE, ISA, 4), database, crew, CORE, ISA)
        assert len({row.workload for row in database.rows()}) == 1 and asked == keeping


def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(rows: list[Row]) -> None:
        raise TuningError("takes no more rows")

    with open_database(tmp_path / "rows.db") as database:
        monkeypatch.setattr(database, "add", full)
        with pytest.raises(TuningError, match="takes no more rows"):
            run(database, LAYERS)
