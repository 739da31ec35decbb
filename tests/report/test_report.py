"""The report: what it says, that the page stands alone, and that nothing which is missing breaks it."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qcompiler.errors import ArtifactError
from qcompiler.report import Report, plots, words

KEYS = ("coverage", "accuracy", "layers", "speed", "refused", "tensors", "manifest")
HOSTILE = "<script>alert('$x$')</script>\"'&\x1b[31m[red]{{ 7 * 7 }}"


def layer(i: int, op: str, noise: random.Random) -> dict[str, Any]:
    macs = int(noise.uniform(2e6, 4e7))
    plain = macs / noise.uniform(5e4, 9e4)
    return {
        "node": f"{op}_{i}",
        "label": f"layer{i // 5 + 1}.{i % 5}.{op}" if op != "linear" else "fc",
        "op": op,
        "planned": "int8",
        "executed": "int8",
        "kernel": {"conv2d": "QLinearConv", "linear": "QGemm"}.get(op, "QLinearAdd"),
        "why": "the target computes it in integers, and its inputs are quantized",
        "source": f"resnet.py:{40 + i}, in forward: out = self.{op}{i % 5}(out)",
        "sqnr_db": 42 - 12 * math.sqrt(i / 30) + noise.gauss(0, 1.2),
        "time_us": plain / noise.uniform(1.8, 3.9),
        "float_time_us": plain,
        "roofline_us": plain / 5,
        "macs": macs,
        "given_up": False,
    }


def tensor(i: int, noise: random.Random) -> dict[str, Any]:
    spread = noise.uniform(0.5, 3)
    counts = [int(4e4 * math.exp(-(((bin - 40) / (12 * spread)) ** 2) / 2)) for bin in range(256)]
    counts[250] = 3
    hi = noise.uniform(3, 9)
    return {
        "label": f"layer{i // 5 + 1}.{i % 5}.relu",
        "format": "uint8",
        "observer": "mse",
        "lo": -2.1,
        "hi": hi,
        "scale": (hi + 2.1) / 255,
        "zero_point": 65,
        "clipped": 0.00012 * i,
        "sqnr_db": 24.0 + i,
        "scores": {"minmax": 9e-4, "percentile": 3.4e-4, "mse": 1.2e-4, "kl": 2.2e-4},
        "histogram": {"start": -2.4, "width": 0.06, "counts": counts},
    }


def sample(count: int = 21) -> dict[str, Any]:
    """A report as it comes out of a convolutional network of so many layers."""
    noise = random.Random(0)
    ops = ["linear" if i == count - 1 else "add" if i % 5 == 4 else "conv2d" for i in range(count)]
    totals = {op: {"total": ops.count(op), "integer": ops.count(op)} for op in ("conv2d", "add", "linear")}
    return {
        "coverage": {
            "planned_integer": count,
            "executed_integer": count,
            "by_op": totals,
            "surprises": [],
            "stray": [],
            "kernels": {"QLinearConv": ops.count("conv2d"), "QLinearAdd": ops.count("add"), "QGemm": 1},
            "holds": True,
        },
        "accuracy": {
            "sqnr_db": 28.9,
            "samples": 4,
            "reference_sqnr_db": 28.9,
            "agreement": 1.0,
            "distance": {
                "max_lsb": 0.0, "changed": 0.0, "bound_lsb": 0.0, "within": True, "unit": "output LSB 0.0123",
            },
            "nodes": {
                "checked": count,
                "worst": [
                    {"label": "layer2.1.conv2d", "kernel": "QLinearConv", "max_lsb": 1, "allowed": 1, "changed": 2e-5}
                ],
                "within": True,
            },
            "metric": {"name": "accuracy", "float": 0.9944, "quantized": 0.9917, "samples": 360},
            "weights_are_random": False,
        },
        "layers": [layer(i, op, noise) for i, op in enumerate(ops)],
        "speed": {
            "float_ms": 7.0,
            "quantized_ms": 2.1,
            "ratio": 3.33,
            "threads": 1,
            "batch": 1,
            "rounds": 7,
            "cpu": "Intel Xeon Platinum 8481C",
            "features": ["avx512_vnni", "amx_int8"],
            "kept": "quantized",
            "given_up": [],
            "ratios": [3.21, 3.3, 3.33, 3.33, 3.35, 3.4, 3.41],
        },
        "refused": [
            *({"rule": "quantize-through-add", "node": f"add_{i}", "reason": "the two scales differ"} for i in range(4)),
            {"rule": "fold-batch-norm", "node": "bn_7", "reason": "the convolution has two readers"},
        ],
        "tensors": [tensor(i, noise) for i in range(count)],
        "manifest": {
            "model": "resnet18",
            "recipe": {"name": "int8", "weights": "int8", "activations": "uint8", "smooth": None, "overrides": []},
            "target": "cpu",
            "backend": "ort",
            "seed": 0,
            "data_hash": "9f2c61d0",
            "graph_hash": "51be7a24",
            "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1", "qcompiler": "0.1.0"},
            "cpu": {"name": "Intel Xeon Platinum 8481C", "features": ["avx512_vnni", "amx_int8"]},
            "session": {"optimization": "all", "spinning": False},
        },
    }  # fmt: skip


def troubled(count: int = 21) -> dict[str, Any]:
    """The same where much went wrong."""
    data = sample(count)
    lost = data["layers"][3]
    lost |= {"executed": "float", "kernel": "FusedConv"}
    for row in data["layers"][5:7]:
        row |= {"executed": "float", "planned": "float", "kernel": "Conv", "given_up": True}
    data["layers"][-1]["sqnr_db"] = 11.2
    data["layers"][0]["sqnr_db"] = math.inf
    surprise = {key: lost[key] for key in ("label", "op", "planned", "executed", "source")}
    data["coverage"] |= {
        "executed_integer": data["coverage"]["planned_integer"] - 1,
        "surprises": [surprise | {"reason": "the bias is float; store it as int32"}],
        "stray": ["quantize_3"],
        "holds": False,
    }
    data["accuracy"]["sqnr_db"] = 11.2
    data["accuracy"]["distance"] |= {"max_lsb": 3.0, "changed": 0.02, "within": False}
    data["speed"] |= {
        "kept": "partly",
        "given_up": [
            {"labels": [row["label"] for row in data["layers"][5:7]], "why": "0.93x float, measured alone"}
        ],
    }
    return data


def save(tmp_path: Path, data: dict[str, Any]) -> str:
    return Report(data).save(tmp_path / "report.html").read_text(encoding="utf-8")
