"""OpenVINO: the float file, NNCF's static int8, and compressed weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.case import Case, leaves
from benchmarks.peers.base import Bind, threads
from qcompiler.models.bundle import Inputs

CONFIG = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 where the CPU can
    "ENABLE_CPU_PINNING": False,  # the process is pinned already
    "CPU_DENORMALS_OPTIMIZATION": True,
}


def opened(path: Path) -> Bind:
    import openvino as ov

    request = (
        ov.Core()
        .compile_model(path, "CPU", CONFIG | {"INFERENCE_NUM_THREADS": threads()})
        .create_infer_request()
    )

    def bind(inputs: Inputs) -> Callable[[], Any]:
        feed = [x.numpy() for x in leaves(inputs)]
        return lambda: [*request.infer(feed, share_inputs=True, share_outputs=True).values()]

    return bind


def saved(model: Any, folder: Path) -> Path:
    """Write a model; what ships is the folder, since the weights stand in a file of their own."""
    import openvino as ov

    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder


def converted(case: Case) -> Any:
    import openvino as ov

    return ov.convert_model(case.onnx)


@dataclass(frozen=True, kw_only=True)
class Float:
    def prepare(self, case: Case, folder: Path) -> Path | None:
        return saved(converted(case), folder)

    def open(self, case: Case, folder: Path) -> Bind:
        return opened(folder / "model.xml")


@dataclass(frozen=True, kw_only=True)
class Static:
    """NNCF with the performance preset; the transformer scheme where the model is one."""

    def prepare(self, case: Case, folder: Path) -> Path | None:
        import nncf

        model, samples = converted(case), case.data().calibration
        names = [given.get_any_name() for given in model.inputs]
        data = nncf.Dataset(
            samples, lambda inputs: dict(zip(names, (x.numpy() for x in leaves(inputs)), strict=True))
        )
        quantized = nncf.quantize(
            model, data, subset_size=len(samples), preset=nncf.QuantizationPreset.PERFORMANCE,
            model_type=None if case.kind == "cnn" else nncf.ModelType.TRANSFORMER,
        )  # fmt: skip
        return saved(quantized, folder)

    def open(self, case: Case, folder: Path) -> Bind:
        return opened(folder / "model.xml")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """NNCF's weight compression of all layers; without a group, one scale per channel."""

    mode: str  # of nncf.CompressWeightsMode
    group: int | None = None

    def prepare(self, case: Case, folder: Path) -> Path | None:
        import nncf

        in_groups = {"ratio": 1.0, "group_size": self.group, "all_layers": True} if self.group else {}
        model = nncf.compress_weights(
            converted(case), mode=nncf.CompressWeightsMode[self.mode], **in_groups
        )  # fmt: skip
        return saved(model, folder)

    def open(self, case: Case, folder: Path) -> Bind:
        return opened(folder / "model.xml")
