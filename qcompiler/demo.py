"""The demo of the README: LeNet on real digits, compiled, exported, run, and judged.

build >> compile >> export_onnx >> plain onnxruntime on the held-out digits
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from qcompiler import api, artifact
from qcompiler.errors import ArtifactError, ContractError, InputError
from qcompiler.models import Bundle, build
from qcompiler.passes.check import Contract
from qcompiler.report import Report, words

BATCH = 32
MOST_LOST = 0.006  # 0.6 points: 2 of the 360 digits
STARTS = ("conv", "linear")  # ops whose arithmetic int8 is about


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the demo found. Accuracies are those of the module and of the exported file."""

    report: Report
    samples: int
    float_accuracy: float
    int8_accuracy: float
    layers: int  # convolutions and linears
    integer_layers: int
    paths: tuple[Path, ...]

    @property
    def drop(self) -> float:
        return self.float_accuracy - self.int8_accuracy


def run(folder: Path, *, train: bool = False, threads: int | None = None) -> Shown:
    """Walk the road and write model.onnx and report.html into `folder`."""
    make(folder)
    bundle = lenet(train)
    rows = bundle.calibration[0][0][:BATCH]
    compiled = api.compile(bundle.module, (rows,), calibration=bundle.calibration, threads=threads)
    report = compiled.measured(bundle.metric, bundle.module).report()
    model, page = folder / "model.onnx", folder / "report.html"
    contract = api.export_onnx(bundle.module, (rows,), model, calibration=bundle.calibration)
    report.save(page)
    done, total = counted(contract)
    return Shown(
        report=report, samples=bundle.metric.samples, layers=total, integer_layers=done, paths=(model, page),
        float_accuracy=bundle.metric(bundle.module)[bundle.metric.name],
        int8_accuracy=bundle.metric(plain_session(model))[bundle.metric.name],
    )  # fmt: skip


def make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot make the folder '{folder}'",
            why=str(error.strerror).lower(),
            fix="choose another with -o",
        ) from error
    artifact.check_writable_file(folder / "model.onnx")


def lenet(train: bool) -> Bundle:
    try:
        bundle = build("lenet")
    except (ImportError, OSError) as error:
        raise InputError("LeNet cannot be built", why=str(error).rstrip(".")) from error
    if not train:
        return bundle
    from rich.console import Console
    from rich.progress import track

    from qcompiler.models.lenet import train as trained

    def progress(epochs: Iterable[int]) -> Iterable[int]:
        return track(epochs, description="training", console=Console(stderr=True), transient=True)

    return bundle._replace(module=trained(progress=progress))


def counted(contract: Contract) -> tuple[int, int]:
    """Convolutions and linears that run in integers, and all of them."""
    rows = [row for row in contract.rows if row.layer.op.startswith(STARTS)]
    return sum(row.executed != "float" for row in rows), len(rows)


def plain_session(path: Path) -> Any:
    """The file as anybody runs it: ONNX Runtime as it comes, and nothing of this package."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run_batch(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])

    return run_batch


def table(shown: Shown) -> Table:
    """The figures, one line each."""
    distance, speed = shown.report.data["accuracy"]["distance"], shown.report.data["speed"]
    before, after = words.percent(shown.float_accuracy), words.percent(shown.int8_accuracy)
    share = words.percent(shown.integer_layers / shown.layers)
    furthest, allowed = words.number(distance["max_lsb"]), words.number(distance["bound_lsb"])
    quick, slow = (words.duration(speed[key], "ms") for key in ("quantized_ms", "float_ms"))
    lines = {
        "Accuracy": f"float {before}, int8 {after} of {shown.samples} held-out digits: "
        f"{100 * shown.drop:.2f} points lost",
        "Coverage": f"{share} of the convolutions and linears in integers "
        f"({shown.integer_layers} of {shown.layers})",
        "Distance": f"{furthest} LSB from the exact reference, {allowed} allowed",
        "Speed": f"{words.times(speed['quantized_ratio'])} float at batch {speed['batch']} "
        f"({quick} against {slow})",
    }
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold", no_wrap=True)
    for title, line in lines.items():
        drawn.add_row(title, line)
    return drawn


def check(shown: Shown) -> None:
    """Raise ContractError if the demo does not show what it is there to show."""
    if shown.drop > MOST_LOST:
        raise ContractError(
            f"int8 loses {100 * shown.drop:.2f} points of accuracy", why=f"{100 * MOST_LOST:.1f} are allowed",
            fix="run it again, and report it if it stays",
        )  # fmt: skip
    if shown.integer_layers < shown.layers:
        raise ContractError(
            f"{shown.layers - shown.integer_layers} of {shown.layers} convolutions and linears run in float",
            fix="`qcompiler doctor` tells what this machine lacks",
        )
