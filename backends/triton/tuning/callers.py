"""How a problem's peers are called: what their times depend on beside torch, as kernels' do on their source.

A layout, an argument or a copy more makes another time of the same product. By op and peer, the functions
that call torch for it and the functions that these call, as `source.text_of` finds them. What only looks at
sizes and names is left out; a test follows the calls.
"""

from collections.abc import Mapping

from qcompiler.backends.triton.tuning.families import FLOAT

ACTIVATED = "ops.weight_only.activated"
FINISHED = ("ops.linear.finished", "ops.linear.ended")
LINEAR = {FLOAT: ("engine.candidates.float_linear", ACTIVATED)}
FEW_BITS = ("tuning.weight_only.through", ACTIVATED)
DECODED = (
    "layouts.restored", "layouts.differences", "layouts.unpack", "numerics.packing.unpack",
    "numerics.packing.split",
)  # fmt: skip
SCALE = "numerics.row_codes.scale_of"
CODES = ("numerics.row_codes.codes_of", "numerics.fp8.cast_fp8", "numerics.rounding.stochastic")
PACKED = ("ops.quantize.codes_of", "ops.quantize.packed", *CODES)
ROWS = ("tuning.rows.codes", SCALE, *PACKED)
DRAWS = ("numerics.philox.uniform", "numerics.philox.philox", "numerics.philox.round_keys")
BLOCKS = (
    "numerics.block_codes.block_codes", "numerics.granularity.reduce_amax",
    "numerics.granularity.reduce_range", "numerics.granularity.spread", SCALE, *CODES,
)  # fmt: skip

CALLERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "int8_linear": {**LINEAR, "int_mm": ("engine.candidates.int_mm", *FINISHED)},
    "fp8_linear": {**LINEAR, "scaled_mm": ("engine.candidates.scaled_mm", *FINISHED)},
    "fp8_block_linear": {
        **LINEAR,
        "scaled_mm": ("engine.candidates.scaled_mm_of_blocks", "ops.blocks.scaled_mm", "ops.linear.ended"),
    },
    "weight_only_linear": {
        FLOAT: ("tuning.weight_only.float_product", *FEW_BITS),
        "dequantized": ("tuning.weight_only.dequantized", *FEW_BITS, *DECODED),
    },
    **{
        op: {FLOAT: (f"tuning.rows.{kind}", *made_by)}
        for op, kind, made_by in (
            ("quantize_rows", "of_rows", ROWS),
            ("quantize_by_amax", "of_maxima", (SCALE, *PACKED)),
            ("quantize_by_scale", "of_one_scale", PACKED),
            ("quantize_both", "of_both", (*ROWS, *DRAWS)),
            ("quantize_blocks", "of_blocks", BLOCKS),
            ("norm_quantize", "of_norms", ROWS),
            ("hadamard_quantize", "of_hadamard", ROWS),
        )
    },
}
