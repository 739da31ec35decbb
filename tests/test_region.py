"""Region mode: models whose path depends on their data, in integers wherever a piece is straight."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.errors import ArtifactError, CalibrationError, EngineError, InputError, TraceError
from qcompiler.region import Regions, backend, region, region_report
from qcompiler.region.build import build, on_reference
from qcompiler.region.model import ByRegion

# torch.compile's typing knows neither a callable with options nor a limit of captures.
torch_compile: Callable[..., Any] = torch.compile


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """torch.compile remembers code across tests."""
    torch.compiler.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.compiler.reset()


class Detector(nn.Module):
    """A backbone on the whole image, and a head on each crop: as many as the scores say."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.score = nn.Conv2d(8, 1, 1)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        score = self.score(features)[0, 0]
        found = []
        for y, x in torch.nonzero(score > 0.9 * score.max()).tolist()[:2]:
            crop = features[:, :, max(y - 2, 0) : y + 3, x : x + 3]
            found.append(self.head(nn.functional.adaptive_avg_pool2d(crop, 2).flatten(1)))
        return torch.cat(found)


class EarlyExit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.early = nn.Linear(8, 4)
        self.rest = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.late = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        first = self.early(x.mean((2, 3)))
        if first.softmax(-1).max() > 0.38:
            return first  # type: ignore[no-any-return]
        return self.late(self.rest(x).mean((2, 3)))  # type: ignore[no-any-return]


class Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).relu().mean((2, 3)))  # type: ignore[no-any-return]


def images(scale: float = 1.0, rows: int = 1, size: int = 16) -> Tensor:
    return scale * torch.randn(rows, 3, size, size)


def plain(calibrate: int = 2, **options: Any) -> Regions:
    """Numbers are studied here, so nothing goes back to float for being slow."""
    return Regions(calibrate=calibrate, guard=False, threads=1, **options)


def exact(calibrate: int = 2) -> Regions:
    """On the reference, which is quick to lower and is never raced."""
    return Regions(calibrate=calibrate, backend="reference")


def by_op(data: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Op -> layers in integers, and all of them: from the contract of what executes."""
    return {op: (row["integer"], row["total"]) for op, row in data["coverage"]["by_op"].items()}


def on_exact_arithmetic(run: Callable[..., Any], x: Tensor) -> Tensor:
    token = on_reference.set(True)
    try:
        found: Tensor = run(x)
    finally:
        on_reference.reset(token)
    return found


def equal_to_reference(data: dict[str, Any]) -> bool:
    """No kernel of any region is off by anything, on the inputs that it was given."""
    nodes = data["accuracy"]["nodes"]
    return nodes["checked"] > 0 and all(
        row["max_lsb"] == 0 for row in nodes["worst"] if "pool" not in row["kernel"].lower()
    )


# ---------------------------------------------------------------- the two shows


def test_both_ways_of_an_early_exit_run_in_integers() -> None:
    model, regions = EarlyExit().eval(), plain()
    fast = torch_compile(model, backend=regions)
    data = [images(scale) for scale in (0.1, 4.0) * 8]
    for x in data:
        fast(x)
    found = regions.report(model).to_dict()
    assert by_op(found)["conv2d"] == (2, 2) and by_op(found)["linear"] == (2, 2)
    assert found["regions"]["uncaptured"] == [] and found["regions"]["islands"] == []
    assert [row["state"] for row in found["regions"]["regions"]] == ["compiled", "compiled"]
    assert equal_to_reference(found)
    for x in data[:4]:
        torch.testing.assert_close(fast(x), on_exact_arithmetic(fast, x), rtol=0, atol=0)
    (branch,) = found["regions"]["breaks"]
    assert "tests/test_region.py:" in branch["where"] and "first.softmax" in branch["code"]


def test_a_detector_runs_its_backbone_and_every_head_in_integers() -> None:
    model, regions = Detector().eval(), plain()
    fast = torch_compile(model, backend=regions, recompile_limit=32)
    data = [images() for _ in range(6)]
    for x in data:
        fast(x)
    regions.settle()  # a number of boxes that was seen once only
    found = regions.report(model).to_dict()
    assert by_op(found)["conv2d"] == (2, 2)
    heads = by_op(found)["linear"]
    assert heads[0] == heads[1] > 0
    assert found["regions"]["uncaptured"] == []
    assert all(row["layers_in_integers"] for row in found["regions"]["regions"])
    assert equal_to_reference(found)
    # The crop takes numbers that the loop computes; it is named with its line and its cost.
    crop = found["regions"]["islands"][0]
    assert "getitem" in crop["ops"] and "tests/test_region.py:" in crop["source"] and crop["time_us"] > 0
    for x in data[:4]:
        torch.testing.assert_close(fast(x), on_exact_arithmetic(fast, x), rtol=0, atol=0)


# ---------------------------------------------------------------- loops over values


class Boxes(nn.Module):
    """A head on some spans of rows, whose ends are read by one of three loops."""

    def __init__(self, loop: str) -> None:
        super().__init__()
        self.neck, self.head, self.loop = nn.Linear(8, 8), nn.Linear(8, 5), loop

    def forward(self, rows: Tensor, boxes: Tensor) -> Tensor:
        rows, found = self.neck(rows), []
        if self.loop == "a list":
            for first, last in boxes.tolist():
                found.append(self.head(rows[first:last].mean(0, keepdim=True)))
        elif self.loop == "one by one":
            for box in boxes:
                found.append(self.head(rows[int(box[0]) : int(box[1])].mean(0, keepdim=True)))
        else:
            for box in boxes:
                found.append(self.of(rows[int(box[0]) : int(box[1])]))
        return torch.cat(found)

    def of(self, span: Tensor) -> Tensor:
        y: Tensor = self.head(span.mean(0, keepdim=True))
        return y


def boxed(model: Boxes) -> Regions:
    regions = exact()
    fast = torch_compile(model, backend=regions)
    for first in range(4):
        fast(torch.randn(16, 8), torch.tensor([[2, 7], [5, 9], [first, 12 + first]]))
    regions.settle()
    return regions


def test_a_loop_that_reads_values_one_by_one_leaves_its_frame_in_float() -> None:
    assert boxed(Boxes("one by one").eval()).regions == []


def test_the_same_loop_over_a_list_reaches_the_regions() -> None:
    model = Boxes("a list").eval()
    found = boxed(model).report(model).to_dict()
    integer, total = by_op(found)["linear"]
    assert integer == total > 1 and found["regions"]["uncaptured"] == []


def test_a_method_that_such_a_loop_calls_is_a_frame_of_its_own() -> None:
    model = Boxes("a method").eval()
    found = boxed(model).report(model).to_dict()
    integer, total = by_op(found)["linear"]
    assert integer == total > 0 and found["regions"]["uncaptured"] == ["neck"]


# ---------------------------------------------------------------- islands


@torch.library.custom_op("regiontest::halves", mutates_args=())
def halves(x: Tensor) -> Tensor:
    return torch.where(x > 0, x * 0.5, x)


@halves.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Around(Straight):
    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(halves(self.conv(images)).mean((2, 3)))
        return found


def test_an_op_that_no_engine_knows_is_an_island_between_integers() -> None:
    model, regions = Around().eval(), plain()
    fast = torch_compile(model, backend=regions)
    data = [images(rows=2) for _ in range(3)]
    for x in data:
        fast(x)
    found = regions.report(model).to_dict()
    assert by_op(found)["conv2d"] == (1, 1) and by_op(found)["linear"] == (1, 1)
    (island,) = found["regions"]["islands"]
    assert island["ops"] == ["regiontest.halves"] and island["time_us"] > 0 and 0 < island["share"] < 1
    assert "tests/test_region.py:" in island["source"]
    assert "regiontest.halves at " in str(regions.report(model))
    torch.testing.assert_close(fast(data[0]), on_exact_arithmetic(fast, data[0]), rtol=0, atol=0)


# ---------------------------------------------------------------- calls that are torch's


def test_other_shapes_and_changed_weights_run_in_float_and_are_counted() -> None:
    model, regions = Straight().eval(), exact()
    fast = torch.compile(model, backend=regions)
    for _ in range(3):
        fast(images(rows=2))
    (only,) = regions.regions
    assert only.calls == {"calibrating": 2, "compiled": 1}
    model.head.weight.mul_(2)
    x = images(rows=2)
    assert torch.equal(fast(x), model(x))
    assert only.calls["changed weights"] == 1
    wide = images(rows=2, size=24)  # torch.compile captures it anew; what is compiled does not admit it
    assert torch.equal(fast(wide), model(wide))


def test_with_gradients_it_is_float_and_says_so_once() -> None:
    model, regions = Straight().eval(), exact()
    fast = torch.compile(model, backend=regions)
    x = images()
    with (
        torch.enable_grad(),
        pytest.warns(UserWarning, match="in float while gradients are recorded.*memory"),
    ):
        fast(x).sum().backward()
    assert model.head.bias.grad is not None and torch.equal(model.head.bias.grad, torch.ones(4))
    assert regions.regions[0].calls == {"gradients": 1}


def test_in_training_mode_batch_norm_learns_and_the_region_stays_in_torch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    regions = plain(calibrate=1)
    fast = torch.compile(model, backend=regions)
    for _ in range(3):
        fast(images(rows=2))
    (only,) = regions.regions
    assert only.state == "torch" and "writes" in only.why
    assert int(model[1].num_batches_tracked) == 3  # type: ignore[arg-type]


def test_without_a_contraction_nothing_is_compiled() -> None:
    regions = plain(calibrate=1)
    fast = torch.compile(nn.ReLU(), backend=regions)
    x = images()
    fast(x)
    assert torch.equal(fast(x), x.relu())
    assert "nothing in it to quantize" in regions.regions[0].why


# ---------------------------------------------------------------- the switch


def test_two_threads_at_the_switch_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built, inside, go_on = [], threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        built.append(threading.get_ident())
        inside.set()
        assert go_on.wait(60)
        return build(*args)

    monkeypatch.setattr(region, "build", slow)
    model, regions = Straight().eval(), exact(calibrate=2)
    fast, x = torch.compile(model, backend=regions), images()

    def call() -> Tensor:
        with torch.no_grad():
            return fast(x)  # type: ignore[no-any-return]

    call()
    first = threading.Thread(target=call)
    first.start()
    assert inside.wait(60)
    assert torch.equal(call(), model(x))  # the other thread is still compiling: float, at once
    go_on.set()
    first.join()
    assert len(built) == 1 and regions.regions[0].state == "compiled"
    call()
    assert regions.regions[0].calls == {"calibrating": 3, "compiled": 1}


@torch.library.custom_op("regiontest::checked", mutates_args=())
def checked(x: Tensor) -> Tensor:
    if x.isnan().any():
        raise RuntimeError("this is no image")
    return x.clone()


@checked.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Picky(Straight):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(checked(images))


def test_an_error_of_the_model_while_it_is_recorded_is_the_callers_and_leaves_no_record() -> None:
    model, regions = Picky().eval(), exact(calibrate=2)
    fast, good, bad = torch.compile(model, backend=regions), images(), images()
    bad[0, 0, 0, 0] = torch.nan
    fast(good)
    with pytest.raises(RuntimeError, match="this is no image"):
        fast(bad)
    (only,) = regions.regions
    assert only.state == "recording" and len(only.records) == 1
    assert torch.equal(fast(good), model(good))
    assert only.calls == {"calibrating": 2} and only.state != "recording"
    assert torch.isfinite(fast(good)).all()


def test_a_failure_of_the_engine_is_counted_and_float_answers() -> None:
    model, regions = Straight().eval(), exact(calibrate=1)
    fast, x = torch.compile(model, backend=regions), images()

    def failing(*given: Any) -> Any:
        raise EngineError("no memory")

    with torch.no_grad():
        fast(x)
        (only,) = regions.regions
        assert only.built is not None
        only.built = dataclasses.replace(only.built, run=failing)
        assert torch.equal(fast(x), model(x))
    assert only.calls == {"calibrating": 1, "engine failed": 1}


def test_a_failing_compilation_leaves_the_float_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(region, "build", fails)
    model, regions = Straight().eval(), exact(calibrate=1)
    fast = torch.compile(model, backend=regions)
    x = images()
    with pytest.warns(UserWarning, match="stays in float, because RuntimeError: no memory left"):
        fast(x)
    assert torch.equal(fast(x), model(x))
    assert "no memory left" in str(regions.report(model))


# ---------------------------------------------------------------- by name, and from compile


def test_options_of_torch_compile_and_the_report_of_its_model(tmp_path: Path) -> None:
    model = EarlyExit().eval()
    with pytest.raises(InputError, match="no region of this EarlyExit"):
        region_report(model)
    fast = torch_compile(
        model, backend=backend, options={"recipe": "int8", "calibrate": 1, "backend": "reference"}
    )
    for scale in (0.1, 4.0) * 2:
        fast(images(scale))
    report = qc.region_report(model)
    assert report.to_dict()["manifest"]["calibrate"] == 1
    assert by_op(report.to_dict())["conv2d"] == (2, 2)
    page = report.save(tmp_path / "regions.html").read_text(encoding="utf-8")
    assert "<h2>Regions</h2>" in page and "<h2>Breaks</h2>" in page


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(Exception, match="there is no option 'bits'"):
        torch_compile(Straight().eval(), backend=backend, options={"bits": 4})(images())


@pytest.mark.parametrize("calibrate", [0, "many"])
def test_calibration_needs_a_call(calibrate: Any) -> None:
    with pytest.raises(InputError, match="ranges come from calls"):
        Regions(calibrate=calibrate)


def test_compile_falls_back_to_regions_and_names_the_line(tmp_path: Path) -> None:
    model = EarlyExit().eval()
    data = [images(scale) for scale in (0.1, 4.0) * 2]
    with pytest.warns(UserWarning, match=r"test_region.py:\d+ \(if first.softmax.*region by region"):
        compiled = qc.compile(model, data[0], calibration=data, backend="reference", progress=False)
    assert isinstance(compiled, ByRegion)
    found = compiled.to_dict()
    assert by_op(found)["conv2d"] == (2, 2) and by_op(found)["linear"] == (2, 2)
    assert found["refused"][0]["rule"] == "whole-model"
    assert found["accuracy"]["sqnr_db"] > 30 and found["accuracy"]["samples"] == 4
    assert "Regions   region 0 at " in str(compiled.report())
    assert sum(row["share"] for row in found["regions"]["regions"]) == pytest.approx(1)
    for x in data:
        assert torch.equal(compiled(x), on_exact_arithmetic(compiled, x))
    with pytest.raises(ArtifactError, match="between the regions runs your Python"):
        compiled.save(tmp_path / "model.qc")
    with pytest.raises(AttributeError, match="has no 'graph' as a whole"):
        _ = compiled.graph


def test_strict_keeps_the_error_of_tracing() -> None:
    with pytest.raises(TraceError, match="depends on the values"):
        qc.compile(EarlyExit().eval(), images(), strict=True, progress=False)


def test_a_model_of_regions_needs_data_and_eval_mode() -> None:
    with pytest.warns(UserWarning, match="region by region"), pytest.raises(CalibrationError, match="empty"):
        qc.compile(EarlyExit().eval(), images(), calibration=[], progress=False)
    with pytest.raises(InputError, match="training mode"):
        qc.compile(EarlyExit(), images(), progress=False)


def test_torch_finds_the_backend_by_its_name() -> None:
    """Through the entry point of the installed package; options arrive, and what is wrong in them is said."""
    model, x = Straight().eval(), images()
    compiled = torch_compile(
        model, backend="qcompiler", options={"recipe": "int8", "calibrate": 2, "guard": False}
    )
    wanted = model(x)
    for _ in range(4):
        found = compiled(x)
    assert 0 < (found - wanted).abs().max() < 0.05
    with pytest.raises(Exception, match="there is no recipe 'int9'"):
        torch_compile(Straight().eval(), backend="qcompiler", options={"recipe": "int9"})(x)
