"""Quantization-aware training: a module to train in one's own loop, and its way back into the compiler."""

from qcompiler.qat.convert import Converted, convert_qat
from qcompiler.qat.module import QATModule
from qcompiler.qat.prepare import prepare_qat
from qcompiler.qat.quantizers import METHODS

__all__ = ["METHODS", "Converted", "QATModule", "convert_qat", "prepare_qat"]
