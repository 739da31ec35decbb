"""Models to compile, each with example inputs, calibration data and a metric.

module, example_inputs, calibration, metric = build("resnet18")
metric(module)  -->  {"sqnr_db": inf, "top1_agreement": 1.0, "samples": 4}
"""

from qcompiler.models.bundle import Bundle, Inputs, Metric
from qcompiler.models.registry import build, describe, names

__all__ = ["Bundle", "Inputs", "Metric", "build", "describe", "names"]
