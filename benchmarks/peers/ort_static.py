"""ONNX Runtime's own static quantization: min-max ranges, weights per channel, QDQ format."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.case import Case, leaves
from benchmarks.peers.base import Bind
from benchmarks.peers.ort import opened

LINEARS = ("MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class Static:
    """`quantize_static` after its own pre-processing.

    only_linears: leave out all but linears, and products of two activations by name, since the option
        MatMulConstBOnly has no effect in this format.
    """

    activations: str = "QUInt8"
    weights: str = "QInt8"
    only_linears: bool = False

    def prepare(self, case: Case, folder: Path) -> Path | None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        source, result = preprocessed(case, folder), folder / "model.onnx"
        quantize_static(
            source, result, reader(case),
            quant_format=QuantFormat.QDQ, per_channel=True, calibrate_method=CalibrationMethod.MinMax,
            activation_type=QuantType[self.activations], weight_type=QuantType[self.weights],
            op_types_to_quantize=[*LINEARS] if self.only_linears else None,
            nodes_to_exclude=products(source) if self.only_linears else [],
            extra_options={"WeightSymmetric": True},
        )  # fmt: skip
        source.unlink()
        return result

    def open(self, case: Case, folder: Path) -> Bind:
        return opened(folder / "model.onnx")


def preprocessed(case: Case, folder: Path) -> Path:
    """Shapes inferred and batch norm folded, as the tool's manual asks for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / "preprocessed.onnx"
    # Symbolic inference fails on exported attention; the shapes are static in any case.
    quant_pre_process(case.onnx, path, skip_symbolic_shape=case.kind != "cnn")
    return path


def reader(case: Case) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
        def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
            self.feeds = feeds

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    samples = case.data().calibration
    return Reader({f"input{i}": x.numpy() for i, x in enumerate(leaves(given))} for given in samples)


def products(path: Path) -> list[str]:
    """The MatMul nodes whose second operand is no constant."""
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
