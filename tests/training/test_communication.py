"""Two processes whose gradients cross in 8 bits, and what is refused without them."""

from pathlib import Path

import pytest
from torch import nn

import qcompiler as qc
from qcompiler.errors import InputError
from tests.processes import held_by_two, needs_gloo


@needs_gloo
def test_two_processes_send_their_gradients_in_8_bits(tmp_path: Path) -> None:
    """The claims are the functions of communicating.py."""
    held_by_two(Path(__file__).with_name("communicating.py"), tmp_path)


def test_a_model_without_buckets_is_refused() -> None:
    with pytest.raises(InputError, match=r"a Linear has no communication hook.*wrap the model"):
        qc.compress_gradients(nn.Linear(2, 2))
