"""Of norm_quantize."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures import rows
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

SIZES = ("columns", "width", "stride_x", "stride_residual", "stride_codes", "stride_stream", "stride_floats")


def types(x: str, codes: str, *, centred: bool, residual: bool, floats: bool) -> Types:
    """A centred norm has a bias; floats: whether the float result is stored too."""
    pointers = {
        "x": x, "residual": x if residual else None, "weight": x,
        "bias": x if centred else None, "given": None, "codes": codes, "scales": "*fp32",
        "stream": x if residual else None, "floats": x if floats else None,
    }  # fmt: skip
    return Types(
        arguments={**pointers, **dict.fromkeys(SIZES, "i32"), "eps": "fp32"}, aligned=frozenset(SIZES)
    )


def uses(row: Configuration, capability: int) -> list[Use]:
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    integer, floating = rows.formats(capability)
    ways = [(integer, False, True)] if row.mode else [(integer, False, True), (floating, True, False)]
    return [
        Use(
            name=f"{'layer' if centred else 'rms'} {format}{' residual' if residual else ''}",
            types=types("*bf16", rows.POINTERS[format], centred=centred, residual=residual, floats=residual),
            constants={"CENTRED": centred, **FORMATS[format]},
        )
        for format, centred, residual in ways
    ]


NORMS: Mapping[str, Signature] = {"norm_quantize": Signature(module="norm", uses=uses)}
