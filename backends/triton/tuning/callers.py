"""How a problem's peers are called: what their times depend on beside torch, as kernels' do on their source.

A layout, an argument or a copy more makes another time of the same product. By op and peer, the functions of
the backend that call it, as `source.text_of` finds them.
"""

from collections.abc import Mapping

from qcompiler.backends.triton.tuning.families import FLOAT

FINISHED = ("ops.linear.finished", "ops.linear.ended")
LINEAR = {FLOAT: ("engine.candidates.float_linear",)}
FEW_BITS = "tuning.weight_only.through"

CALLERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "int8_linear": {**LINEAR, "int_mm": ("engine.candidates.int_mm", *FINISHED)},
    "fp8_linear": {**LINEAR, "scaled_mm": ("engine.candidates.scaled_mm",)},
    "fp8_block_linear": {
        **LINEAR,
        "scaled_mm": ("engine.candidates.scaled_mm_of_blocks", "ops.blocks.scaled_mm", "ops.linear.ended"),
    },
    "weight_only_linear": {
        FLOAT: ("tuning.weight_only.float_product", FEW_BITS),
        "dequantized": ("tuning.weight_only.dequantized", FEW_BITS, "layouts.restored"),
    },
    **{
        op: {FLOAT: (f"tuning.rows.{kind}", "tuning.rows.codes")}
        for op, kind in (
            ("quantize_rows", "of_rows"),
            ("quantize_by_amax", "of_maxima"),
            ("quantize_by_scale", "of_one_scale"),
            ("quantize_both", "of_both"),
            ("quantize_blocks", "of_blocks"),
            ("norm_quantize", "of_norms"),
            ("hadamard_quantize", "of_hadamard"),
        )
    },
}
