"""The demo does what the README says of it, and fails where it could not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from qcompiler import demo
from qcompiler.cli import app
from qcompiler.errors import ContractError
from qcompiler.report import Report

SHOWN = demo.Shown(
    report=Report({}),
    samples=360,
    float_accuracy=0.99,
    int8_accuracy=0.99,
    layers=4,
    integer_layers=4,
    paths=(),
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("demo") / "out" / "lenet"
    return folder, CliRunner().invoke(app, ["demo", "-o", str(folder), "--threads", "1"])


def test_it_shows_accuracy_coverage_distance_and_speed(walked: tuple[Path, Result]) -> None:
    folder, result = walked
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "360 held-out digits" in lines[0]
    assert "100 % of the convolutions and linears in integers (4 of 4)" in lines[1]
    assert "LSB from the exact reference" in lines[2]
    assert "float at batch 32" in lines[3]
    assert lines[-2:] == [f"Saved {folder / 'model.onnx'}", f"Saved {folder / 'report.html'}"]


def test_it_leaves_a_model_and_a_page(walked: tuple[Path, Result]) -> None:
    folder, _ = walked
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "report.html"}
    kinds = {node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds


def test_what_it_demands_is_met_at_the_bound() -> None:
    demo.check(SHOWN)
    demo.check(replace(SHOWN, int8_accuracy=SHOWN.float_accuracy - 2 / 360))


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"int8_accuracy": 0.98}, "1.00 points"), ({"integer_layers": 3}, "1 of 4 convolutions and linears")],
)
def test_it_fails_where_the_promise_is_broken(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ContractError, match=says):
        demo.check(replace(SHOWN, **changes))  # type: ignore[arg-type]  # mypy cannot match a dict with fields


def test_it_can_train_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, walked: tuple[Path, Result]
) -> None:
    """Two epochs do not reach the accuracy of the checkpoint; that a network is trained is what counts."""
    from qcompiler.models import lenet

    trained: list[int] = []
    train: Callable[..., lenet.LeNet] = lenet.train

    def quick(**options: object) -> lenet.LeNet:
        trained.append(1)
        return train(epochs=2, **options)

    monkeypatch.setattr(lenet, "train", quick)
    bundle = demo.lenet(train=True)
    assert trained == [1]
    assert bundle.metric(bundle.module)["accuracy"] > 0.5
