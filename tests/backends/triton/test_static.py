"""Machine code of every configuration, compiled without a GPU; what is planted is caught."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from qcompiler.backends.triton import static
from qcompiler.backends.triton.configurations import CONFIGURATIONS, Bounds, Configuration, chosen
from qcompiler.backends.triton.configurations.products import PERSISTENT, tile
from qcompiler.backends.triton.signatures import Use, kernel_named, uses
from qcompiler.backends.triton.signatures import products as product_signatures
from qcompiler.backends.triton.signatures import rows as row_signatures
from qcompiler.backends.triton.static import Findings, Types, faults, findings
from qcompiler.errors import LoweringError, TargetError

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.compile_only


@pytest.fixture(scope="session")
def cache(request: pytest.FixtureRequest) -> Path:
    """Findings of sources that did not change; the checks of what they say run each time."""
    folder: Path = request.config.cache.mkdir("triton")
    return folder


EVERY_TIME = (80, 90)  # machine code of other devices is looked at by `make thorough`


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A configuration with one way in which it is called."""

    configuration: Configuration
    use: Use
    capability: int

    @property
    def name(self) -> str:
        row = self.configuration
        words = filter(None, (row.kernel, row.mode, self.use.name))
        return f"{' '.join(words)} on {self.capability / 10}"


def variants() -> list[Variant]:
    """Every row for its own capability, and for those of the two that it serves, called in every way."""
    return [
        Variant(configuration=row, use=use, capability=capability)
        for row in CONFIGURATIONS
        for capability in sorted({*EVERY_TIME, row.capability})
        if row.capability <= capability <= row.latest
        and row is chosen(row.kernel, capability, mode=row.mode, heavy=row.heavy)
        for use in uses(row, capability)
    ]


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(one, id=one.name, marks=() if one.capability in EVERY_TIME else pytest.mark.thorough)
        for one in variants()
    ],
)
def test_machine_code_keeps_its_bounds(variant: Variant, cache: Path) -> None:
    row, use = variant.configuration, variant.use
    found = findings(
        kernel_named(row.kernel), use.types, use.constants, row, capability=variant.capability, cache=cache
    )
    bounds = row.bounds
    assert faults(found, bounds) == []
    assert bounds.registers - found.registers < 64, "the bound would not notice much"


def test_every_configuration_is_compiled() -> None:
    assert [row for row in CONFIGURATIONS if row not in [one.configuration for one in variants()]] == []


# ---------------------------------------------------------------- what is planted

PLAIN = Types(
    arguments={
        **dict.fromkeys(("a", "b"), "*i8"), "out": "*i32",
        **dict.fromkeys(("M", "N", "K", "stride_a", "stride_b", "stride_out"), "i32"),
    },
    aligned=frozenset({"N", "K", "stride_a", "stride_b", "stride_out"}),
)  # fmt: skip


def test_a_spill_is_caught(cache: Path) -> None:
    """int8 256 x 256 x 128 with 4 warps: 512 sums in a thread that has 255 registers."""
    planted = replace(
        chosen("int8_matmul", 90), constants=tile(256, 256, 128, descriptors=False), warps=4, stages=2
    )
    types = product_signatures.types("*i8", "*bf16")
    found = findings(
        kernel_named("int8_matmul"), types, {"ACTIVATION": "none"}, planted, capability=90, cache=cache
    )
    assert found.stack > 0 and found.spills > 0
    assert faults(found, planted.bounds)[0].startswith("registers are spilled")


@pytest.mark.parametrize("along_n", [False, True])
def test_a_wrong_layout_is_caught(cache: Path, along_n: bool) -> None:
    """Tensor cores take int8 contiguous along k; a weight [K, N] is transposed in registers, byte by byte."""
    from tests.backends.triton.planted import any_order

    row = replace(chosen("int8_matmul", 80), constants={"BM": 128, "BN": 128, "BK": 64})
    bounds = replace(row.bounds, mma="IGMMA")
    found = findings(any_order, PLAIN, {"ALONG_N": along_n}, row, capability=90, cache=cache)
    caught = [fault for fault in faults(found, bounds) if "permute bytes" in fault]
    assert len(caught) == along_n and (found.permutes >= 48) == along_n


@pytest.mark.parametrize("exact", [False, True])
def test_a_division_that_only_comes_near_is_caught(cache: Path, exact: bool) -> None:
    from tests.backends.triton.planted import divided

    types = Types(arguments=dict.fromkeys(("x", "y", "out"), "*fp32"), aligned=frozenset())
    row = replace(chosen("quantize_rows", 80), constants={"BLOCK": 1024})
    found = findings(divided, types, {"EXACT": exact}, row, capability=90, cache=cache)
    caught = [fault for fault in faults(found, row.bounds) if "round otherwise" in fault]
    assert len(caught) == (not exact)


def in_loops(ptx: str) -> str:
    """Its blocks that are part of a loop, as LLVM notes beside their labels."""
    blocks = re.split(r"^(?=\$L__BB|// %bb)", ptx, flags=re.MULTILINE)
    return "".join(block for block in blocks if "Loop" in block.partition("\n")[0])


@pytest.mark.parametrize(
    ("capability", "product", "load"), [(80, "mma.sync", "cp.async.cg"), (90, "wgmma.mma", "cp.async.bulk")]
)
def test_what_walks_loads_for_its_next_tile_in_the_loop_that_stores(
    monkeypatch: pytest.MonkeyPatch, capability: int, product: str, load: str
) -> None:
    """Of two loops, one in the other, the inner one would begin to load anew for each tile."""
    seen = list[str]()

    def read(ptx: str, *given: object) -> Findings:
        seen.append(ptx)
        return FIT

    monkeypatch.setattr(static, "read", read)
    for mode in ("", PERSISTENT):
        row = chosen("int8_matmul", capability, mode=mode)
        (use, *_) = uses(row, capability)
        findings(kernel_named("int8_matmul"), use.types, use.constants, row, capability=capability)
    whole, walking = (in_loops(ptx) for ptx in seen)
    assert product in whole and load in whole and "st.global" not in whole
    assert product in walking and load in walking and "st.global" in walking
    assert "Depth=1" in walking and "Depth=2" not in walking


def test_fp8_is_refused_where_a_device_has_none(cache: Path) -> None:
    types = product_signatures.types("*fp8e4nv", "*bf16")
    row = chosen("fp8_matmul", 90, mode="fast")
    with pytest.raises(LoweringError, match=r"fp8_matmul for compute capability 8\.0, because .*fp8e4nv"):
        findings(kernel_named("fp8_matmul"), types, {"ACTIVATION": "none"}, row, capability=80, cache=cache)
    with pytest.raises(TargetError, match=r"fp8_matmul fast on a device of compute capability 8\.0"):
        chosen("fp8_matmul", 80, mode="fast")
    with pytest.raises(TargetError, match=r"capability 8\.9, because it has configurations for 9\.0"):
        chosen("fp8_matmul", 89, mode="promote128")


def test_sums_are_promoted_by_wgmma_alone(cache: Path) -> None:
    """Where that does nothing there is no row which says that it did."""
    types = product_signatures.types("*fp8e4nv", "*bf16")
    for capability in (89, 90):
        sizes = set[int]()
        for promote in (None, 128):
            constants = {"PROMOTE": promote, **tile(128, 128, 128, descriptors=False)}
            row = replace(chosen("fp8_matmul", 90, mode="fast"), constants=constants, stages=2)
            found = findings(
                kernel_named("fp8_matmul"), types, {"ACTIVATION": "none"}, row, capability=capability,
                cache=cache,
            )  # fmt: skip
            sizes.add(found.size)
        assert len(sizes) == (2 if capability == 90 else 1)


def test_an_interpreted_kernel_is_refused() -> None:
    from triton.runtime.interpreter import InterpretedFunction

    interpreted = InterpretedFunction(kernel_named("quantize_rows").fn)
    with pytest.raises(LoweringError, match="TRITON_INTERPRET"):
        findings(
            interpreted, row_signatures.types("*bf16", "*i8"), {}, chosen("quantize_rows", 80), capability=80
        )


def test_findings_are_remembered_by_source_and_options(tmp_path: Path) -> None:
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    def found(warps: int) -> Findings:
        row = replace(chosen("quantize_rows", 80), warps=warps, constants={"BLOCK": 256})
        return findings(
            kernel_named("quantize_rows"), row_signatures.types("*fp32", "*i8"), FORMATS["int8"], row,
            capability=80, cache=tmp_path,
        )  # fmt: skip

    first = found(1)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "registers": 1234}))
    assert found(1) == replace(first, registers=1234)
    assert found(2).registers != 1234 and len([*tmp_path.iterdir()]) == 2


# ---------------------------------------------------------------- sentences

FIT = Findings(
    capability=90, threads=128, registers=100, stack=0, shared=1000, spills=0, mma={"IGMMA": 4},
    shapes=("IGMMA.64x128x32.S8.S8",), wide_loads=8, wide_stores=0,
    permutes=0, inexact=3, size=1,
)  # fmt: skip
BOUNDS = Bounds(registers=200, shared=10**6, mma="IGMMA", wide_loads=8, permutes=0)
EXACT = replace(BOUNDS, exact=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stack": 8}, "registers are spilled: 8 bytes of stack, 0 loads and stores of them"),
        ({"registers": 201}, "201 registers a thread, 200 are allowed"),
        ({"registers": 200, "threads": 512}, "512 threads of 200 registers do not fit into 65536"),
        ({"shared": 232449}, "232449 bytes of shared memory, 232448 are allowed"),
        ({"mma": {}}, "matrix instructions are none, IGMMA expected"),
        ({"mma": {"HMMA": 1, "IMMA": 2}}, "matrix instructions are HMMA and IMMA, IGMMA expected"),
        ({"wide_loads": 7}, "7 loads of 16 bytes or tiles, 8 are expected"),
        (
            {"permutes": 48},
            "48 instructions permute bytes, 0 are allowed: an operand may lie in the wrong order",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    assert faults(FIT, BOUNDS) == []
    assert faults(FIT, EXACT) == ["3 instructions may round otherwise than the reference"]
    assert faults(replace(FIT, **change), BOUNDS) == [sentence]
    assert faults(FIT, replace(BOUNDS, wide_stores=2)) == ["0 stores of 16 bytes, 2 are expected"]
