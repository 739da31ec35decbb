"""Of store, recall, store_mask, recall_mask and draws."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

FLOATS = {4: "*i16", 2: "*fp32", 8: "*fp16"}
"""What is compiled: these bits of these floats, bfloat16 as int16."""
POINTERS = {"key": "*i64", "packed": "*u8", "bounds": "*i32", "values": "*fp32"}


def types(kernel: str, x: str | None = None) -> Types:
    """Counts and words may be any: nothing is said of what divides them."""
    names = {
        "store": ("x", "key", "packed", "bounds", "count", "tensor", "purpose"),
        "recall": ("packed", "bounds", "x", "count"),
        "store_mask": ("x", "packed", "count"),
        "recall_mask": ("packed", "x", "count"),
        "draws": ("key", "values", "tensor", "purpose", "start"),
    }[kernel]
    kinds = {**POINTERS, "x": x}
    return Types(arguments={name: kinds.get(name, "i32") for name in names}, aligned=frozenset())


def storage_uses(row: Configuration, capability: int) -> list[Use]:
    return [
        Use(
            name=f"{bits} bits of {x}",
            types=types(row.kernel, x),
            constants={"BITS": bits, "BFLOAT": x == "*i16"},
        )
        for bits, x in FLOATS.items()
    ]


def store_mask_uses(row: Configuration, capability: int) -> list[Use]:
    return [
        Use(name=f"of {x}", types=types("store_mask", x), constants={"FLOAT": x != "*u8"})
        for x in ("*u8", "*i32")
    ]


def recall_mask_uses(row: Configuration, capability: int) -> list[Use]:
    return [
        Use(name=f"as {x}", types=types("recall_mask", x), constants={"ONE": one})
        for x, one in (("*u8", 1), ("*i16", 0x3F80))
    ]


def draws_uses(row: Configuration, capability: int) -> list[Use]:
    return [Use(types=types("draws"))]


STORAGE: Mapping[str, Signature] = {
    "store": Signature(module="storage", uses=storage_uses),
    "recall": Signature(module="storage", uses=storage_uses),
    "store_mask": Signature(module="masks", uses=store_mask_uses),
    "recall_mask": Signature(module="masks", uses=recall_mask_uses),
    "draws": Signature(module="draws", uses=draws_uses),
}
