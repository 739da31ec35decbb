"""Instruction sets: their machine code holds what they are named for, and nothing that their CPU may lack."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from qcompiler.backends.tvm import build
from qcompiler.backends.tvm.build import compiled, handed, host, placed, processor_for, uses
from qcompiler.backends.tvm.builder import Builder
from qcompiler.backends.tvm.isa import (
    AVX2,
    AVX512_VBMI,
    AVX512_VNNI,
    AVX512VL_VNNI,
    AVX_VNNI,
    ISAS,
    NEON_DOT,
    NEON_I8MM,
    Isa,
)
from qcompiler.backends.tvm.kernels.activation import Activation, activation
from qcompiler.backends.tvm.kernels.add import Pair, Zeros, add, concatenate, multiply, table
from qcompiler.backends.tvm.kernels.attention import Attention, Operand, attention
from qcompiler.backends.tvm.kernels.cached_attention import CachedAttention, cached_attention
from qcompiler.backends.tvm.kernels.conv import Convolution, convolution
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, depthwise
from qcompiler.backends.tvm.kernels.edge import decode, encode
from qcompiler.backends.tvm.kernels.float_attention import FloatAttention, float_attention
from qcompiler.backends.tvm.kernels.gemv import Gemv, gemv
from qcompiler.backends.tvm.kernels.norm import Norm, encode_rows, norm
from qcompiler.backends.tvm.kernels.pool import (
    Average,
    Pool,
    average_pool,
    global_average_pool,
    max_pool,
)
from qcompiler.backends.tvm.kernels.rotary import Rotary, rotary
from qcompiler.backends.tvm.kernels.rounding import rounded
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.schedules import predicted
from qcompiler.backends.tvm.selftest import probe
from qcompiler.target.machine import Cpu
from tests.backends.tvm.sets import RUNNABLE, built, every_isa, pytestmark

SHOWN = {
    AVX512_VBMI: {"conv": r"vpdpbusd.*zmm", "table": r"vperm[it]2b.*zmm"},
    AVX512_VNNI: {"conv": r"vpdpbusd.*zmm"},
    AVX512VL_VNNI: {"conv": r"vpdpbusd.*ymm"},
    AVX_VNNI: {"conv": r"\{vex\}\s*vpdpbusd.*ymm"},
    AVX2: {"conv": r"vpmaddwd.*ymm"},
    NEON_DOT: {"conv": r"\budot\s"},
    NEON_I8MM: {"conv": r"\busdot\s"},
}
# Registers of AVX-512, instructions that it alone has, and the product of bytes that saturates.
BEYOND_AVX2 = r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b|vpternlog|vperm[it]2|vpmaddubsw"


def functions(isa: Isa) -> dict[str, Any]:
    """One function of every kind, of a size that leaves a rest in every loop."""
    x = y = Plane(images=1, height=9, width=11, channels=48, pitch=48, border=1)
    dot = Plane(images=1, height=1, width=1, channels=48, pitch=48)
    conv = Convolution(x=x, y=y, residual=y, shifted=True, kernel=(3, 3), padding=(1, 1))
    each = Depthwise(x=x, y=y, kernel=(3, 3), padding=(1, 1))
    pool = Pool(x=x, y=y, stride=(1, 1), kernel=(3, 3), padding=(1, 1))
    pair = Pair(a=x, b=y, y=y)
    return {
        "conv": convolution(conv, predicted(conv, isa), isa, "conv"),
        "depthwise": depthwise(each, predicted(each, isa), isa, "depthwise"),
        "max": max_pool(pool, isa, "max"),
        "average": average_pool(pool, Average(x_zero=3, y_zero=5), isa, "average"),
        "global": global_average_pool(x, dot, Average(), isa, "global"),
        "add": add(pair, isa, "add"),
        "mul": multiply(pair, Zeros(a=1, b=2, y=3), isa, "mul"),
        "table": table(x, y, isa, "table"),
        "cat": concatenate((x, y), Plane(images=1, height=9, width=11, channels=96, pitch=96), isa, "cat"),
        "encode": encode(y, 5, isa, "encode"),
        "decode": decode(x, 5, isa, "decode"),
    }


def functions_of_rows(isa: Isa) -> dict[str, Any]:
    """The same for transformers and decoders; 100 channels end in a part of every register."""

    def lines(channels: int) -> Plane:
        return Plane(images=1, height=1, width=5, channels=channels, pitch=channels + 12)

    x, y, heads = lines(100), lines(100), lines(192)
    one = Operand(plane=lines(64))
    some = Attention(
        q=one, k=one, v=one, y=one, batch=1, heads=2, kv_heads=2, queries=5, keys=5, width=32, causal=True
    )
    cached = CachedAttention(
        x=heads, y=lines(64), heads=2, kv_heads=2, width=32, capacity=70, scale=0.2, rotary=True
    )
    seen = FloatAttention(
        q=heads, k=heads, v=heads, y=heads, batch=1, heads=6, kv_heads=3, queries=5, keys=5, width=32,
        scale=0.2, causal=True, ranged=True,
    )  # fmt: skip
    few = Gemv(x=x, y=lines(112), bits=4, block=32, zero=8)
    curve = Activation(function="gelu", channels=100, x=x, floats=y, codes=y)
    turned = Rotary(x=heads, heads=3, width=64, positions=5, pitch=32, floats=heads, codes=heads)
    return {
        "norm": norm(Norm(x=x, floats=y, codes=y, ranged=True), isa, "norm"),
        "encode rows": encode_rows(x, y, isa, "encode_rows"),
        "attention": attention(some, isa, "attention"),
        "cached attention": cached_attention(cached, isa, "cached_attention"),
        "rounded": rounded(few.rounding, isa, "rounded"),
        "gemv": gemv(few, isa, "gemv"),
        "activation": activation(curve, isa, "activation"),
        "rotary": rotary(turned, isa, "rotary"),
        "float attention": float_attention(seen, isa, "float_attention"),
    }


def assembly(function: Any, isa: Isa) -> str:
    """What LLVM makes of a function for the least processor that has the instructions."""
    found: str = compiled([function], isa.processor).mod.inspect_source("asm")
    return found


@pytest.mark.parametrize("isa", ISAS, ids=[isa.name for isa in ISAS])
def test_every_kernel_builds_for_every_set(isa: Isa) -> None:
    every = {**functions(isa), **functions_of_rows(isa)}
    made = {name: assembly(function, isa) for name, function in every.items()}
    for name, pattern in SHOWN[isa].items():
        assert re.search(pattern, made[name])
    if isa in (AVX2, AVX_VNNI):
        assert not [name for name, text in made.items() if re.search(BEYOND_AVX2, text)]


@pytest.mark.skipif(AVX2 not in RUNNABLE, reason="this CPU has no AVX2")
def test_what_a_virtual_machine_masks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM knows a processor by its name, which is the same whatever is masked."""
    isa = RUNNABLE[0]
    whole = Cpu(name="whole", features=isa.features, flags=frozenset(uses(host()) | set(isa.features)))
    monkeypatch.setattr(build, "this_cpu", lambda: whole)
    assert processor_for(isa) == host()
    left = frozenset(uses(AVX2.processor))
    monkeypatch.setattr(build, "this_cpu", lambda: Cpu(name="masked", features=AVX2.features, flags=left))
    if not uses(host()) <= left:
        assert processor_for(AVX2) == AVX2.processor
    for function in (probe(AVX2), functions_of_rows(AVX2)["norm"]):
        text = compiled([function], processor_for(AVX2)).mod.inspect_source("asm")
        assert not re.search(BEYOND_AVX2, text)


@pytestmark
@every_isa
def test_products_are_exact_where_they_are_largest(isa: Isa) -> None:
    """255 * -128 four times: beyond 16 bits, where sums of byte products saturate on older instructions."""
    k = Builder("dot")
    x, w = k.argument("x", "uint8", 64), k.argument("w", "int8", 64)
    y = k.argument("y", "int32", isa.lanes)
    start = k.load(y, 0, isa.lanes)
    k.store(y, 0, isa.dot(start, isa.spread(x, 0), isa.panel(w, 0)), isa.lanes)
    dot = built(k.function(), isa)
    for code, weight in ((255, -128), (255, 127), (1, -128), (128, -1)):
        sums = placed(np.full(isa.lanes, 7, np.int32))
        dot(*map(handed, [placed(np.full(64, code, np.uint8)), placed(np.full(64, weight, np.int8)), sums]))
        assert (sums == 7 + isa.unit * code * weight).all()
