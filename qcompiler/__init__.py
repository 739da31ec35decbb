"""qcompiler: a graph-level quantization compiler.

    import qcompiler as qc
    compiled = qc.compile(model, example_inputs, calibration=batches)
    compiled(x), print(compiled.report()), compiled.save("model.qc")

Importing this module is cheap; torch and the engines load at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompiler.api import Compiled as Compiled
    from qcompiler.api import compile as compile
    from qcompiler.api import explain as explain
    from qcompiler.api import export_library as export_library
    from qcompiler.api import export_onnx as export_onnx
    from qcompiler.api import load as load
    from qcompiler.ir import trace as trace
    from qcompiler.language import LanguageModel as LanguageModel
    from qcompiler.language import compile_decoder as compile_decoder
    from qcompiler.language import load_decoder as load_decoder
    from qcompiler.qat import QATModule as QATModule
    from qcompiler.qat import convert_qat as convert_qat
    from qcompiler.qat import prepare_qat as prepare_qat
    from qcompiler.recipe import Override as Override
    from qcompiler.recipe import Recipe as Recipe
    from qcompiler.region import region_report as region_report
    from qcompiler.training import compile_training as compile_training
    from qcompiler.training import find_batch_size as find_batch_size
    from qcompiler.training import load_training_state as load_training_state
    from qcompiler.training import training_report as training_report
    from qcompiler.training import training_state as training_state
    from qcompiler.training.communication import compress_gradients as compress_gradients

# Public name -> where it lives.
PUBLIC = {
    "compile": "qcompiler.api",
    "explain": "qcompiler.api",
    "export_library": "qcompiler.api",
    "export_onnx": "qcompiler.api",
    "load": "qcompiler.api",
    "Compiled": "qcompiler.api",
    "trace": "qcompiler.ir",
    "compile_decoder": "qcompiler.language",
    "load_decoder": "qcompiler.language",
    "prepare_qat": "qcompiler.qat",
    "convert_qat": "qcompiler.qat",
    "QATModule": "qcompiler.qat",
    "region_report": "qcompiler.region",
    "compile_training": "qcompiler.training",
    "compress_gradients": "qcompiler.training.communication",  # not every torch has distributed
    "find_batch_size": "qcompiler.training",
    "load_training_state": "qcompiler.training",
    "training_report": "qcompiler.training",
    "training_state": "qcompiler.training",
    "LanguageModel": "qcompiler.language",
    "Recipe": "qcompiler.recipe",
    "Override": "qcompiler.recipe",
}

__all__ = [*PUBLIC]  # noqa: PLE0604 - the table is the one list of names


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    if name in ("models", "passes", "backends"):
        return importlib.import_module(f"qcompiler.{name}")
    raise AttributeError(f"module 'qcompiler' has no attribute '{name}'")
