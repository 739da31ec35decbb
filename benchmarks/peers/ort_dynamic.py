"""ONNX Runtime's own dynamic quantization: int8 weights per channel, ranges of activations at run time."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import Case
from benchmarks.peers.base import Bind
from benchmarks.peers.ort import opened
from benchmarks.peers.ort_static import LINEARS, preprocessed


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    def prepare(self, case: Case, folder: Path) -> Path | None:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        source, result = preprocessed(case, folder), folder / "model.onnx"
        model = onnx.load(source)
        # The tool transposes weights of Gemm and then stumbles over the shapes noted before.
        del model.graph.value_info[:]
        quantize_dynamic(
            model, result, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=[*LINEARS],
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
        source.unlink()
        return result

    def open(self, case: Case, folder: Path) -> Bind:
        return opened(folder / "model.onnx")
