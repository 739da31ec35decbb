"""PyTorch's compiler on models quantized by torchao: static PT2E for x86, and int8 dynamic."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.case import Case
from benchmarks.peers.base import Bind
from qcompiler.models.bundle import Inputs


def compiled(module: Any, case: Case, folder: Path) -> Bind:
    """Freezing folds the weights into the kernels' layout; the C++ wrapper spares Python between kernels."""
    from torch._inductor import config

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    config.freezing = True
    config.cpp_wrapper = True
    config.compile_threads = 1
    fast = torch.compile(module)

    def bind(inputs: Inputs) -> Callable[[], Any]:
        return partial(fast, *laid_out(inputs, case))

    return bind


def laid_out(inputs: Inputs, case: Case) -> Inputs:
    """Images in channels last, which is what the convolution kernels want."""
    if case.kind != "cnn":
        return inputs
    return tuple(x.to(memory_format=torch.channels_last) for x in inputs)


def module_of(case: Case) -> nn.Module:
    module = case.module()
    if case.kind == "cnn":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
    return module


@dataclass(frozen=True, kw_only=True)
class Pt2e:
    """prepare_pt2e, calibration, convert_pt2e with the x86 quantizer's defaults."""

    def prepare(self, case: Case, folder: Path) -> Path | None:
        warm(self.open(case, folder), case)
        return None

    def open(self, case: Case, folder: Path) -> Bind:
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        samples = [laid_out(inputs, case) for inputs in case.data().calibration]
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        observed = prepare_pt2e(torch.export.export(module_of(case), samples[0]).module(), quantizer)
        for inputs in samples:
            observed(*inputs)
        return compiled(convert_pt2e(observed), case, folder)


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """torchao's int8 weights per channel and int8 activations per token."""

    def prepare(self, case: Case, folder: Path) -> Path | None:
        warm(self.open(case, folder), case)
        return None

    def open(self, case: Case, folder: Path) -> Bind:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        module = module_of(case)
        quantize_(module, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
        return compiled(module, case, folder)


def warm(bind: Bind, case: Case) -> None:
    """Run once: kernels stay in the cache on disk. They are bound to this machine, so no file ships."""
    bind(case.data().calibration[0])()
