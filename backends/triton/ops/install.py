"""The operators of `ir.draws` and `ir.storage` get kernels on CUDA devices, for this whole process.

Before that, torch computes them there as the reference does. The noise's key is read where it lies, by the
kernels: a graph that is captured once draws anew in every step.
"""

from functools import cache
from typing import Any

import torch

from qcompiler.backends.agreement import agree
from qcompiler.backends.triton.ops.storage import drawn, masked, recalled, stored, unmasked
from qcompiler.errors import EngineError, QCompilerError
from qcompiler.ir.draws import draws
from qcompiler.ir.storage import recall, recall_mask, store, store_mask
from qcompiler.numerics.groupwise import compress, compress_mask, decompress
from qcompiler.numerics.philox import Purpose, noise_key, uniform

KERNELS = (
    (draws, drawn), (store, stored), (recall, recalled), (store_mask, masked), (recall_mask, unmasked)
)  # fmt: skip
HERE = "the self-test of kernels for training"


@cache
def install(device: torch.device) -> None:
    """Raises a QCompilerError where a kernel cannot run or does not compute what the CPU does."""
    try:
        prove(device)
    except (QCompilerError, ImportError):
        raise
    except Exception as error:  # Triton's own are many, and so are a driver's
        why = str(error) or type(error).__name__
        raise EngineError(f"no kernel can be launched on {device}", node=HERE, why=why) from error
    register()


@cache
def register() -> None:
    for operator, kernel in KERNELS:
        operator.register_kernel("cuda")(kernel)


def prove(device: torch.device) -> None:
    """Two groups and a part of one, 4 bits, there and back, against what is computed on the CPU.

    The reference on the device would not do: torch divides by a number otherwise there.
    """
    key, count = noise_key(1, 2, 3), 700
    x = uniform(count, key, tensor=0, purpose=Purpose.SAVED_ACTIVATION) - 0.5
    layout: tuple[Any, ...] = ([count], [1], x.dtype)
    expected = compress(
        x, 4, lambda start, n: uniform(n, key, tensor=4, purpose=Purpose.SAVED_ACTIVATION, offset=start)
    )
    here, its = x.to(device), key.to(device)
    made, marks = stored(here, its, 4, 4), masked(here > 0)
    wanted = uniform(count, key, tensor=4, purpose=1, offset=3)
    pairs = (
        ("draws", drawn(its, count, 4, 1, 3).cpu(), wanted),
        ("codes", made[0].cpu(), expected[0]),
        ("bounds", made[1].cpu(), expected[1]),
        ("values", recalled(*made, 4, *layout).cpu(), decompress(*expected, 4, count)),
        ("marks", marks.cpu(), compress_mask(x > 0)),
        ("masks", unmasked(marks, *layout).cpu(), (x > 0).to(x.dtype)),
    )
    agree(pairs, node=HERE, fix="report it with the device and the version of Triton")
