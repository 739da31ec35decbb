"""Seconds on paper, what rows teach, and which candidates there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from qcompiler.backends.triton.configurations import CONFIGURATIONS, Configuration, chosen
from qcompiler.backends.triton.ops.weight_only import RUN
from qcompiler.backends.triton.ops.weight_only import mode_of as mode_of_rows
from qcompiler.backends.triton.tuning.device import DEVICES, Device, device_like
from qcompiler.backends.triton.tuning.families import FAMILIES, family_of, space, written
from qcompiler.backends.triton.tuning.families.products import tiles_of
from qcompiler.backends.triton.tuning.families.products import work as product_work
from qcompiler.backends.triton.tuning.families.weight_only import layout_of
from qcompiler.backends.triton.tuning.predict import REACHED, Work, predicted
from qcompiler.backends.triton.tuning.problem import Problem, bucket, parsed
from qcompiler.backends.triton.tuning.ranking import quality, residual_of
from qcompiler.backends.triton.tuning.residual import Residual, Sample, features, learnt
from qcompiler.backends.triton.tuning.tuner import versions
from qcompiler.errors import InputError
from qcompiler.tune.database import Row

H100, A100 = DEVICES[0], next(device for device in DEVICES if device.capability == 80)
LARGE = Problem(op="int8_linear", scheme="int8", M=8192, N=8192, K=8192)
WORK = Work(kind="int8", operations=0, bytes=0, l2_bytes=0, programs=264, threads=128, shared=100_000)


@pytest.mark.parametrize(
    ("work", "limit"),
    [
        (replace(WORK, operations=H100.rates["int8"] * REACHED), "arithmetic"),
        (replace(WORK, bytes=H100.bandwidth), "memory"),
        (replace(WORK, l2_bytes=H100.l2_bandwidth), "L2"),
    ],
)
def test_the_slowest_resource_sets_the_time(work: Work, limit: str) -> None:
    """Each has work for a second, and two programs of 100 kB fit on a processor: 264 are a wave."""
    found = predicted(work, H100)
    assert (found.limit, found.waves) == (limit, 1.0)
    assert found.seconds == pytest.approx(1 + H100.launch)


def test_a_wave_that_is_not_full_takes_as_long_as_one_that_is() -> None:
    work = replace(WORK, operations=H100.rates["int8"] * REACHED, programs=330)
    assert predicted(work, H100).seconds == pytest.approx(2 / (330 / 264) + H100.launch)
    assert predicted(replace(work, launches=2), H100).seconds > predicted(work, H100).seconds


def test_the_work_of_a_product_counts_its_padding() -> None:
    row = chosen("int8_matmul", 80)  # tiles of 128 x 128 x 64
    exact, ragged = replace(LARGE, M=256, N=256, K=128), replace(LARGE, M=129, N=130, K=80)
    assert product_work(exact, row).operations == product_work(ragged, row).operations == 2 * 256 * 256 * 128
    assert product_work(exact, row).bytes == 512 * 128 + 256 * 256 * 2
    assert product_work(replace(exact, heavy=True), row).bytes == 512 * 128 + 2 * 256 * 256 * 2


@pytest.mark.parametrize("op", FAMILIES)
@pytest.mark.parametrize("device", [H100, A100], ids=["9.0", "8.0"])
def test_every_candidate_may_run_and_has_a_name_of_its_own(op: str, device: Device) -> None:
    capability = device.capability
    for problem in problems(op):
        found = space(problem, capability)
        assert len({written(one) for one in found}) == len(found)
        tabled = [row for row in CONFIGURATIONS if row.kernel == family_of(problem).kernel]
        if any(row.capability <= capability <= row.latest for row in tabled):
            default = found[0]
            assert default == chosen(default.kernel, capability, mode=default.mode, heavy=default.heavy)
            assert len(found) > 1, "there is nothing to choose"
        work = family_of(problem).work
        for one in found:
            assert predicted(work(problem, one), device).seconds > device.launch


SCHEMES = {
    "int8_linear": ("int8",),
    "fp8_linear": ("e4m3 fast", "e4m3 promote128"),
    "fp8_block_linear": ("e4m3",),
    "weight_only_linear": ("w4h_g128", "w2h_g64 zeros", "w8_g128 gated"),
    "quantize_rows": ("int8", "e4m3"),
    "quantize_by_amax": ("int8",),
    "quantize_by_scale": ("int8", "e4m3"),
    "quantize_both": ("int8", "int8 drawn", "e4m3 drawn ragged"),
    "quantize_blocks": ("e4m3",),
    "norm_quantize": ("int8 rms residual", "e4m3 layer floats"),
    "hadamard_quantize": ("int8 256",),
}
HEIGHTS = {
    "int8_linear": (16, 8192), "fp8_linear": (16, 8192), "weight_only_linear": (1, 16, 64, 8192)
}  # fmt: skip
LENGTHS = {"norm_quantize": (768, 16384), "quantize_rows": (768, 8192, 40000)}


def problems(op: str) -> list[Problem]:
    is_product = op.endswith("linear")
    return [
        Problem(op=op, scheme=scheme, M=M, N=8192 if is_product else 0, K=K, heavy=heavy)
        for scheme in SCHEMES[op]
        for heavy in ((False, True) if is_product else (False,))
        for M in HEIGHTS.get(op, (8192,))
        for K in LENGTHS.get(op, (8192,))
    ]


# What may differ from a kernel's row in the tables: tiles of products, of which int8 is exact and FP8 adds
# along k, in parts to a bound of its own; tiles of what is decoded, but not how groups are added; blocks, on
# which no sum or draw depends.
WAYS = {"SPLIT", "PERSISTENT"}
FREE = {
    "int8_matmul": {"BM", "BN", "BK", "GROUP", "DESCRIPTORS", *WAYS},
    "fp8_matmul": {"BM", "BN", "BK", "GROUP", "DESCRIPTORS", *WAYS},
    "fp8_block_matmul": {"BM", "BN"},
    "weight_only_gemv": {"BN"},
    "weight_only_gemm": {"BM", "BN"},
    "quantize_rows": {"BLOCK"},
    "quantize_long_rows": {"BLOCK"},
    "quantize_known": {"BLOCK"},
    "quantize_both": {"BM", "BK"},
    "quantize_blocks": {"BM"},
    "norm_quantize": {"BLOCK", "LEVELS"},
    "hadamard_quantize": {"BLOCK"},
}


@pytest.mark.parametrize("op", FAMILIES)
@pytest.mark.parametrize("capability", [80, 90])
def test_no_candidate_changes_what_sums_depend_on(op: str, capability: int) -> None:
    for problem in problems(op):
        found = space(problem, capability)
        for one in found:
            default, sizes = found[0], one.constants
            assert one.mode == default.mode and sizes.keys() - WAYS == default.constants.keys()
            differ = {name for name, value in sizes.items() if default.constants.get(name) != value}
            assert differ <= FREE[one.kernel], written(one)
            if "LEVELS" in sizes:
                assert sizes["BLOCK"] == 2 ** sizes["LEVELS"] >= problem.K, "a row is added as a whole"
            if one.kernel in ("quantize_rows", "hadamard_quantize"):
                assert sizes["BLOCK"] >= problem.K
            if one.kernel == "weight_only_gemv":
                bytes = sizes["BN"] * RUN * layout_of(problem).bits // 8
                assert bytes >= 16 * 32 * one.warps, "a group would be spread over more threads"
            if sizes.get("PROMOTE"):
                assert sizes["PROMOTE"] <= sizes["BK"]


def ways(problem: Problem, name: str) -> list[Configuration]:
    return [one for one in space(problem, 90) if name in one.constants]


def tiles(problem: Problem, row: Configuration) -> int:
    return tiles_of(problem, row.constants["BM"], row.constants["BN"])


@pytest.mark.parametrize("op", ["int8_linear", "fp8_linear"])
def test_few_tiles_are_in_parts_and_many_are_walked_over(op: str) -> None:
    scheme = SCHEMES[op][0]
    few, many = (replace(LARGE, op=op, scheme=scheme, M=M, N=4096, K=4096) for M in (16, 8192))
    parts, walking = ways(few, "SPLIT"), ways(many, "PERSISTENT")
    assert parts and walking and not ways(few, "PERSISTENT") and not ways(many, "SPLIT")
    for one in parts:
        assert tiles(few, one) * one.constants["SPLIT"] < 2 * H100.processors
        assert few.K // one.constants["SPLIT"] >= 4 * one.constants["BK"], "loads are not worth a pipeline"
    assert not ways(replace(few, K=512), "SPLIT")
    assert all(tiles(many, one) > A100.processors * one.constants["PERSISTENT"] for one in walking)


@pytest.mark.parametrize(("op", "capability"), [("int8_linear", 80), ("int8_linear", 90), ("fp8_linear", 90)])
def test_programs_that_walk_side_by_side_fit_into_one_processor(op: str, capability: int) -> None:
    """164 KB of 8.0 and 228 of 9.0 are for all programs, and 1 of them is kept for each (CUDA C++ guide)."""
    problem = replace(LARGE, op=op, scheme=SCHEMES[op][0], M=8192, N=4096, K=4096)
    found = space(problem, capability)
    assert any(one.constants.get("PERSISTENT") == 2 for one in found)
    for one in found[1:]:  # the first is the table's
        programs, sizes = one.constants.get("PERSISTENT", 1), one.constants
        stages = one.stages * (sizes["BM"] + sizes["BN"]) * sizes["BK"]
        assert stages <= one.bounds.shared, written(one)
        assert programs * (one.bounds.shared + 1024) <= {80: 164, 90: 228}[capability] * 1024


def test_what_parts_and_walking_do_is_in_the_seconds_on_paper() -> None:
    """Parts fill a device, and cost a launch and what is added; what walks waits for its last results alone.

    With M 16, one tile of 64 x 128 x 128 for each 128 outputs, 32 of them: a fourth of 132 processors.
    """

    def paper(problem: Problem, row: Configuration, device: Device = H100, **way: int) -> float:
        one = replace(row, constants={**row.constants, **way})
        return predicted(product_work(problem, one), device).seconds

    few = replace(LARGE, M=16, N=4096, K=8192)
    row = next(one for one in space(few, 90) if (one.constants["BM"], one.constants["BN"]) == (64, 128))
    assert paper(few, row, SPLIT=4) < paper(few, row, SPLIT=2) < paper(few, row)
    added = product_work(few, replace(row, constants={**row.constants, "SPLIT": 4}))
    assert added.launches == 2 and added.added == 4 * 16 * 4096 * 4 + 16 * 4096 * 2
    assert added.bytes == product_work(few, row).bytes, "no memory but that of a kernel without parts"

    # On an A100 arithmetic is what takes longest, and a processor holds one program of a heavy epilogue: 2048
    # tiles in 19 waves, of which but the last have their results stored while the next tile is loaded.
    many = replace(LARGE, M=4096, N=8192, K=4096, heavy=True)
    default = space(many, 80)[0]
    saved = paper(many, default, A100) - paper(many, default, A100, PERSISTENT=1)
    moved = 2 * 2 * many.M * many.N  # a residual and results
    assert saved == pytest.approx(moved / A100.l2_bandwidth * (1 - 1 / 19), rel=1e-6)


def test_rows_of_before_are_read_and_others_say_what_they_are() -> None:
    """A row of the database names its configuration in these words."""
    names = [written(one) for one in space(replace(LARGE, M=4096), 90)]
    assert names[0] == "BM 128, BN 256, BK 128, GROUP 8, DESCRIPTORS True, warps 8, stages 3"
    assert "BM 128, BN 256, BK 128, GROUP 8, DESCRIPTORS True, PERSISTENT 1, warps 8, stages 3" in names
    names = [written(one) for one in space(replace(LARGE, M=16, N=4096), 90)]
    assert "BM 64, BN 128, BK 128, GROUP 8, DESCRIPTORS True, SPLIT 4, warps 4, stages 4" in names


@pytest.mark.parametrize("capability", [80, 90])
def test_the_tables_rows_of_each_way_are_candidates(capability: int) -> None:
    """What is compiled for them is of use."""
    rows = [row for row in CONFIGURATIONS if row.capability == capability and WAYS & row.constants.keys()]
    assert rows
    for row in rows:
        op = "int8_linear" if row.kernel == "int8_matmul" else "fp8_linear"
        scheme = "int8" if op == "int8_linear" else f"e4m3 {row.mode.split()[0]}"
        M = 16 if "SPLIT" in row.constants else 8192
        problem = replace(LARGE, op=op, scheme=scheme, M=M, N=4096, heavy=row.heavy)
        assert written(row) in map(written, space(problem, capability)), row


def test_a_bucket_of_rows_has_one_kernel() -> None:
    """Or else a row of the database would be of another than the one that runs."""
    for M in range(1, 200):
        assert mode_of_rows(M) == mode_of_rows(bucket(M))


def test_a_gate_is_measured_without_a_residual_which_its_model_has_elsewhere() -> None:
    gate = Problem(op="weight_only_linear", scheme="w4h_g128 gated", M=64, N=28672, K=8192, heavy=True)
    codes, groups = gate.N * gate.K, 2 * gate.N * gate.K // 128  # of 4 bits, two rows for an output
    family = family_of(gate)
    moved = codes + 2 * groups + 2 * gate.M * (gate.K + gate.N)
    assert family.work(gate, space(gate, 90)[0]).bytes == moved
    assert family.use(gate).types.arguments["residual"] is None
    assert family.use(gate).constants["ACTIVATION"] == "silu"


def test_rows_of_8_bits_are_not_asked_of_devices_without_them() -> None:
    assert space(replace(LARGE, op="fp8_linear", scheme="e4m3 fast"), 80) == []
    for op in ("fp8_block_linear", "quantize_blocks"):
        assert space(replace(LARGE, op=op, scheme="e4m3"), 80) == []


def test_an_unknown_op_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="nothing is known of 'int3_linear'"):
        space(replace(LARGE, op="int3_linear"), 90)


@pytest.mark.parametrize(
    ("rows", "wanted"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128), (8192, 8192), (9000, 8192)]
)
def test_buckets_are_the_next_power_of_two(rows: int, wanted: int) -> None:
    assert bucket(rows) == wanted
    assert wanted == replace(LARGE, M=rows).bucketed.M


def test_a_device_without_a_row_is_taken_for_one_like_it() -> None:
    half = device_like("NVIDIA GH100 slice", 90, 66)
    assert half.bandwidth == H100.bandwidth / 2 and half.rates["int8"] == H100.rates["int8"] / 2
    named = device_like("NVIDIA H100 PCIe", 90, 114)
    assert named.core.processor == "NVIDIA H100 PCIe, 114 processors" and named.core.isa == "sm_90"


def test_what_paper_misses_is_learnt_from_rows() -> None:
    """Where eight warps take a third longer than paper says, whatever else."""
    samples = []
    for row in space(LARGE, 90):
        paper = predicted(product_work(LARGE, row), H100)
        samples.append(
            Sample(configuration=row, predicted=paper, seconds=paper.seconds * (4 / 3) ** (row.warps == 8))
        )
    residual = learnt(samples)
    wrong = [abs(math.log(residual(one.configuration, one.predicted) / one.seconds)) for one in samples]
    assert max(wrong) < 0.05 < math.log(4 / 3)


def test_nothing_learnt_is_the_prediction() -> None:
    row = space(LARGE, 90)[0]
    paper = predicted(product_work(LARGE, row), H100)
    assert learnt([])(row, paper) == paper.seconds
    assert torch.isfinite(torch.tensor(features(row, paper))).all()


def timed_rows(problem: Problem, slower: Callable[[Configuration], float]) -> list[Row]:
    """A row for each configuration, `slower` times what paper says."""
    core = H100.core

    def row(one: Configuration) -> Row:
        seconds = predicted(product_work(problem, one), H100).seconds * slower(one)
        return Row(
            workload=problem.text, configuration=written(one), isa=core.isa, processor=core.processor,
            seconds=seconds, spread=0.0, rounds=3, **versions(problem),
        )  # fmt: skip

    return [row(one) for one in space(problem, 90)]


def test_the_order_on_paper_is_judged_by_rows_and_mended_by_what_they_teach() -> None:
    """Where few stages take twice as long, paper's first is not the fastest; who has learnt finds it."""
    rows = [
        row
        for m in (256, 2048, 8192)
        for row in timed_rows(replace(LARGE, M=m), lambda one: 2.0 if one.stages == 3 else 1.0)
    ]
    nothing, taught = Residual(), residual_of(rows, H100)
    assert quality(rows, H100, nothing, first=1) < 0.9
    assert quality(rows, H100, taught, first=1) > 0.97
    assert quality(rows, H100, nothing, first=len(rows)) == 1.0
    elsewhere = [replace(row, processor="NVIDIA A100, 108 processors") for row in rows]
    assert quality(elsewhere, H100, nothing, first=1) == 1.0 and residual_of(elsewhere, H100) == nothing


@pytest.mark.parametrize(
    "problem", [LARGE, replace(LARGE, N=0, heavy=True), replace(LARGE, scheme="e4m3 fast")]
)
def test_the_text_of_a_problem_is_read_back(problem: Problem) -> None:
    assert parsed(problem.text) == problem
    assert parsed("convolution, 1x112x112x16 -> 1x112x112x96, kernel 1x1, stride 1x1") is None
