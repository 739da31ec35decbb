"""Rows that a program holds as a whole, since it goes over them more than once."""

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops.device import capability
from qcompiler.errors import InputError

LONGEST = 16384  # numbers of a row


def configuration(kernel: str, width: int, device: torch.device) -> Configuration:
    """The one of least size that holds a row of codes."""
    short = chosen(kernel, capability(device))
    return short if width <= short.constants["BLOCK"] else chosen(kernel, capability(device), mode="wide")


def check_length(x: Tensor) -> None:
    """InputError for rows that no program holds."""
    if x.shape[1] > LONGEST:
        raise InputError(
            f"rows of {x.shape[1]} numbers",
            why=f"{LONGEST} are held at once",
            fix="keep the op in float, and quantize by triton_quantize_rows",
        )
