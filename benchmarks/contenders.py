"""The table of contenders. Adding one is a row here, and for a new engine a file in peers/.

A peer imports its engine when its own process prepares or opens it, not before.
"""

import hashlib
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import (
    inductor,
    openvino,
    ort,
    ort_dynamic,
    ort_nbits,
    ort_static,
    ours,
    ours_decoder,
)
from benchmarks.peers.base import Peer
from benchmarks.records import versions
from benchmarks.workloads import Kind

ROOT = Path(__file__).parent.parent
BASELINE = "onnxruntime"
PRESENT = ("torch", "onnx", "onnxruntime")  # what qcompiler brings along

ALL: tuple[Kind, ...] = ("cnn", "transformer", "prefill", "decode")
STATIC: tuple[Kind, ...] = ("cnn", "transformer", "prefill")
LINEAR: tuple[Kind, ...] = ("transformer", "prefill", "decode")
LANGUAGE: tuple[Kind, ...] = ("prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A peer with its settings, the workloads it can run, and what it needs.

    `bits` are those of the weights. `packages` are distributions, `programs` commands.
    """

    title: str
    peer: Peer
    kinds: tuple[Kind, ...]
    bits: int = 8
    ours: bool = False
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    def missing(self) -> tuple[str, ...]:
        """What it needs and this machine has not."""
        packages = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return (*packages, *(name for name in self.programs if shutil.which(name) is None))

    def fingerprint(self) -> str:
        """Changes when something changes that it was prepared with."""
        own = type(self.peer).__module__.replace(".", "/") + ".py"
        sources = (own, "qcompiler", "passes", "backends") if self.ours else (own,)
        return " ".join([repr(self.peer), repr(versions((*PRESENT, *self.packages))), digest(*sources)])


def digest(*places: str) -> str:
    """Of Python files in the checkout, and of all in its folders; links are not followed."""
    found = hashlib.sha256()
    for place in places:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:16]


COMPILER = ("c++",)  # torch generates C++ and compiles it

CONTENDERS: dict[str, Contender] = {
    # Ours. One row per recipe; a workload takes every row of its kind.
    "ours-int8": Contender(
        title="qcompiler int8", peer=ours.Compile(recipe="int8"), kinds=("cnn", "transformer"), ours=True,
    ),
    "ours-tvm-int8": Contender(
        title="qcompiler int8, kernels of our own", peer=ours.Compile(recipe="int8", backend="tvm"),
        kinds=("cnn", "transformer"), ours=True,
    ),
    "ours-int8-mixed": Contender(
        title="qcompiler int8 mixed", peer=ours.Compile(recipe="int8-mixed"),
        kinds=("transformer", "prefill"), ours=True,
    ),
    "ours-int8-dynamic": Contender(
        title="qcompiler int8 dynamic", peer=ours.Compile(recipe="int8-dynamic"),
        kinds=("transformer", "prefill"), ours=True,
    ),
    "ours-tvm-int8-dynamic": Contender(
        title="qcompiler int8 dynamic, kernels of our own",
        peer=ours.Compile(recipe="int8-dynamic", backend="tvm"), kinds=("transformer", "prefill"), ours=True,
    ),
    "ours-decoder-int8": Contender(
        title="qcompiler decoder, int8 dynamic", peer=ours_decoder.Decode(recipe="int8-dynamic"),
        kinds=LANGUAGE, ours=True,
    ),
    "ours-decoder-8": Contender(
        title="qcompiler decoder, weights int8, groups of 128",
        peer=ours_decoder.Decode(recipe={"base": "w8a16", "group_size": 128}), kinds=("decode",), ours=True,
    ),
    "ours-decoder-4": Contender(
        title="qcompiler decoder, weights uint4, groups of 128",
        peer=ours_decoder.Decode(recipe={"base": "w4a16", "weights": "uint4", "group_size": 128}),
        kinds=("decode",), bits=4, ours=True,
    ),
    "ours-tvm-decoder-4": Contender(
        title="qcompiler decoder, weights uint4, kernels of our own",
        peer=ours_decoder.Decode(
            recipe={"base": "w4a16", "weights": "uint4", "group_size": 128}, backend="tvm"
        ),
        kinds=("decode",), bits=4, ours=True,
    ),
    BASELINE: Contender(title="ONNX Runtime float", peer=ort.Float(), kinds=ALL, bits=32),
    "onnxruntime-static": Contender(
        title="ONNX Runtime static, uint8 int8", peer=ort_static.Static(), kinds=STATIC,
    ),
    "onnxruntime-static-int8": Contender(
        title="ONNX Runtime static, int8 int8", peer=ort_static.Static(activations="QInt8"), kinds=STATIC,
    ),
    "onnxruntime-linears": Contender(
        title="ONNX Runtime static, linears only", peer=ort_static.Static(only_linears=True),
        kinds=("transformer", "prefill"),
    ),
    "onnxruntime-dynamic": Contender(
        title="ONNX Runtime dynamic, int8", peer=ort_dynamic.Dynamic(), kinds=LINEAR,
    ),
    "onnxruntime-nbits4-32": Contender(
        title="ONNX Runtime MatMulNBits 4, block 32", peer=ort_nbits.NBits(bits=4, block=32), kinds=LANGUAGE,
        bits=4,
    ),
    "onnxruntime-nbits4-128": Contender(
        title="ONNX Runtime MatMulNBits 4, block 128", peer=ort_nbits.NBits(bits=4, block=128),
        kinds=LANGUAGE, bits=4,
    ),
    "onnxruntime-nbits8": Contender(
        title="ONNX Runtime MatMulNBits 8, block 32", peer=ort_nbits.NBits(bits=8, block=32), kinds=LANGUAGE,
    ),
    "openvino": Contender(
        title="OpenVINO float", peer=openvino.Float(), kinds=ALL, bits=32, packages=("openvino",),
    ),
    "openvino-int8": Contender(
        title="OpenVINO NNCF int8", peer=openvino.Static(), kinds=STATIC, packages=("openvino", "nncf"),
    ),
    "openvino-weights8": Contender(
        title="OpenVINO NNCF weights int8", peer=openvino.Weights(mode="INT8_ASYM"), kinds=LANGUAGE,
        packages=("openvino", "nncf"),
    ),
    "openvino-weights4": Contender(
        title="OpenVINO NNCF weights int4, group 128", peer=openvino.Weights(mode="INT4_SYM", group=128),
        kinds=LANGUAGE, bits=4, packages=("openvino", "nncf"),
    ),
    "inductor-pt2e": Contender(
        title="torchao PT2E int8, inductor", peer=inductor.Pt2e(), kinds=("cnn", "transformer"),
        packages=("torchao",), programs=COMPILER,
    ),
    "inductor-dynamic": Contender(
        title="torchao int8 dynamic, inductor", peer=inductor.Dynamic(), kinds=LINEAR,
        packages=("torchao",), programs=COMPILER,
    ),
}  # fmt: skip
