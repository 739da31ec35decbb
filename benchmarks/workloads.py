"""The table of workloads. A new one is a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from benchmarks import llama
from qcompiler.models import build
from qcompiler.models.bundle import Bundle

Kind = Literal["cnn", "transformer", "prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model at a batch size.

    `floor_db`: bits of the weights -> the SQNR below which a speed does not count.
    """

    title: str
    kind: Kind
    build: Callable[[], Bundle]
    batch: int = 1
    floor_db: Mapping[int, float] = field(default_factory=dict)


WORKLOADS: dict[str, Workload] = {
    "resnet18": Workload(title="ResNet-18", kind="cnn", build=partial(build, "resnet18")),
    "resnet18_b8": Workload(title="ResNet-18 b8", kind="cnn", build=partial(build, "resnet18"), batch=8),
    "resnet50": Workload(title="ResNet-50", kind="cnn", build=partial(build, "resnet50")),
    "mobilenetv2": Workload(title="MobileNetV2", kind="cnn", build=partial(build, "mobilenetv2")),
    "vit_b_32": Workload(
        title="ViT-B/32", kind="transformer", build=partial(build, "vit_b_32"), floor_db={8: 26.0}
    ),
    "bert_base": Workload(
        title="BERT 128", kind="transformer", build=partial(build, "bert_base"), floor_db={8: 27.0}
    ),
    "llama_prefill": Workload(
        title="LLaMA prefill", kind="prefill", build=llama.prefill, floor_db={8: 20.0}
    ),
    "llama_decode": Workload(title="LLaMA decode", kind="decode", build=llama.decode, floor_db={8: 29.0}),
}  # fmt: skip
