"""Rows that a program holds as a whole, since it goes over them more than once."""

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.errors import InputError

LONGEST = 16384  # numbers of a row


def configuration(kernel: str, width: int, capability: int) -> Configuration:
    """The one of least size that holds a row of codes."""
    check_length(width)
    short = chosen(kernel, capability)
    return short if width <= short.constants["BLOCK"] else chosen(kernel, capability, mode="wide")


def check_length(columns: int) -> None:
    """InputError for rows that no program holds."""
    if columns > LONGEST:
        raise InputError(
            f"rows of {columns} numbers",
            why=f"{LONGEST} are held at once",
            fix="keep the op in float, and quantize by triton_quantize_rows",
        )
