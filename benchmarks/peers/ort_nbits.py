"""ONNX Runtime's weight-only quantization: MatMulNBits, int8 activations inside the kernel (level 4)."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import Case
from benchmarks.peers.base import Bind
from benchmarks.peers.ort import opened


@dataclass(frozen=True, kw_only=True)
class NBits:
    bits: int
    block: int

    def prepare(self, case: Case, folder: Path) -> Path | None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        result = folder / "model.onnx"
        quantizer = MatMulNBitsQuantizer(
            onnx.load(case.onnx), bits=self.bits, block_size=self.block, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(result), False)
        return result

    def open(self, case: Case, folder: Path) -> Bind:
        return opened(folder / "model.onnx")
