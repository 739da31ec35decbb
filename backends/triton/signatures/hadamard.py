"""Of hadamard_quantize."""

from collections.abc import Mapping
from dataclasses import replace

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures import rows
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types


def uses(row: Configuration, capability: int) -> list[Use]:
    """Blocks of 256; where rows are short, of 4096 too, which warps share."""
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    integer, floating = rows.formats(capability)
    ways = [(integer, 8)] if row.mode else [(integer, 8), (floating, 12)]
    return [
        Use(
            name=f"{format} in blocks of {2**levels}",
            types=types("*bf16", rows.POINTERS[format]),
            constants={"LEVELS": levels, **FORMATS[format]},
        )
        for format, levels in ways
    ]


def types(x: str, codes: str) -> Types:
    found = rows.types(x, codes)
    return replace(found, arguments={**found.arguments, "factor": "fp32"})


HADAMARD: Mapping[str, Signature] = {"hadamard_quantize": Signature(module="hadamard", uses=uses)}
