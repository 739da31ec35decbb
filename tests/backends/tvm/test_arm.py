"""ARM's own instructions, in an emulator: what `neon_dot` is compiled to computes what plain arithmetic does.

Runs where `unicorn` (2.1 knows dot products, and no products of unsigned and signed bytes) and `pyelftools`
are installed; nothing else needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompiler.backends.tvm.build import compiled, handed, placed
from qcompiler.backends.tvm.isa import NEON_DOT, Isa
from qcompiler.backends.tvm.kernels import depthwise as channels
from qcompiler.backends.tvm.kernels.conv import LINE, Convolution, convolution, pack
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.schedules import predicted
from qcompiler.backends.tvm.selftest import probe
from tests.backends.tvm.portable import PORTABLE
from tests.backends.tvm.sets import built, pytestmark

__all__ = ["pytestmark"]
unicorn = pytest.importorskip("unicorn")
elf = pytest.importorskip("elftools.elf.elffile")
X = Plane(images=1, height=7, width=7, channels=48, pitch=48, border=1)
CONV = Convolution(
    x=X,
    y=Plane(images=1, height=7, width=7, channels=32, pitch=32),
    kernel=(3, 3), padding=(1, 1),
)  # fmt: skip
EACH = channels.Depthwise(
    x=X,
    y=Plane(images=1, height=7, width=7, channels=48, pitch=48),
    kernel=(3, 3), padding=(1, 1),
)  # fmt: skip
CODE, DATA, STACK, SPACE = 0x10000, 0x1000000, 0x8000000, 0x1000000


def function(kind: str, isa: Isa) -> Any:
    if kind == "probe":
        return probe(isa)
    if kind == "conv":
        return convolution(CONV, predicted(CONV, NEON_DOT), isa, kind)
    return channels.depthwise(EACH, predicted(EACH, NEON_DOT), isa, kind)


def arrays(kind: str) -> list[NDArray[Any]]:
    """Arguments of a function, the result last."""
    draw = np.random.default_rng(1)
    if kind == "probe":
        steps = np.array([0.5, np.nan, -300, 255.5], np.float32)
        return [
            np.full(64, 255, np.uint8), np.arange(-128, -64).astype(np.int8), steps,
            np.full(4, 7, np.int32), np.zeros(16, np.uint8),
        ]  # fmt: skip
    layer = CONV if kind == "conv" else EACH
    outputs = layer.y.channels
    bias = draw.integers(-3000, 3000, outputs).astype(np.int32)
    multiplier = (draw.random(outputs) * 0.005).astype(np.float32)
    if isinstance(layer, Convolution):
        codes = draw.integers(-127, 128, (outputs, 48, 3, 3)).astype(np.int8)
        weights = np.concatenate([pack(layer, codes, NEON_DOT).reshape(-1), np.zeros(LINE, np.int8)])
    else:
        codes = draw.integers(-127, 128, (outputs, 1, 3, 3)).astype(np.int8)
        weights = channels.pack(layer, codes, NEON_DOT).reshape(-1)
        bias, multiplier = (channels.arranged(layer, v, NEON_DOT).reshape(-1) for v in (bias, multiplier))
    x = draw.integers(0, 256, layer.x.size, np.uint8)
    return [x, weights, bias, multiplier, np.zeros(layer.y.size, np.uint8)]


def emulated(kind: str, given: list[NDArray[Any]], path: Path) -> list[bytes]:
    """What lies in memory after the function without TVM's checks around it has run."""
    compiled([function(kind, NEON_DOT)], NEON_DOT.processor).mod.write_to_file(str(path), "o")
    with path.open("rb") as opened:
        file = elf.ELFFile(opened)
        text = file.get_section_by_name(".text").data()
        symbols = file.get_section_by_name(".symtab").iter_symbols()
        start = next(symbol["st_value"] for symbol in symbols if symbol.name == f"{kind}_compute_")
    arm, machine = unicorn.arm64_const, unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    machine.ctl_set_cpu_model(arm.UC_CPU_ARM64_MAX)
    for begin in (CODE, DATA, STACK):
        machine.mem_map(begin, SPACE if begin != CODE else DATA - CODE)
    machine.mem_write(CODE, text)
    machine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # vector registers are allowed
    machine.reg_write(arm.UC_ARM64_REG_SP, STACK + SPACE // 2)
    places, at = [], DATA
    for number, array in enumerate(given):
        machine.mem_write(at, array.tobytes())
        machine.reg_write(arm.UC_ARM64_REG_X0 + number, at)
        places.append((at, array.nbytes))
        at += -(-array.nbytes // 4096) * 4096
    end = CODE + -(-len(text) // 4096) * 4096
    machine.reg_write(arm.UC_ARM64_REG_X30, end)
    machine.emu_start(CODE + start, end)
    return [bytes(machine.mem_read(*place)) for place in places]


@pytest.mark.parametrize("kind", ["probe", "conv", "depthwise"])
def test_machine_code_for_arm_computes_the_same(kind: str, tmp_path: Path) -> None:
    given = arrays(kind)
    found = emulated(kind, given, tmp_path / "function.o")
    wanted = list(map(placed, given))
    built(function(kind, PORTABLE), PORTABLE)(*map(handed, wanted))
    assert found == [array.tobytes() for array in wanted]
    assert len(set(found[-1])) > (1 if kind == "probe" else 50)
