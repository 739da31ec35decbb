"""Two processes whose gradients cross in 8 bits, and what is refused without them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of this process only."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@needs_gloo
@pytest.mark.usefixtures("alone")
def test_one_process_keeps_its_gradients_and_sends_nothing() -> None:
    plain = nn.Linear(5, 3)
    model = DistributedDataParallel(plain)
    state = qc.compress_gradients(model)
    model(torch.ones(2, 5)).square().sum().backward()
    found = [parameter.grad for parameter in plain.parameters()]
    wanted = torch.autograd.grad(plain(torch.ones(2, 5)).square().sum(), [*plain.parameters()])
    assert all(ours is not None and torch.equal(ours, of) for ours, of in zip(found, wanted, strict=True))
    assert (state.sent, state.errors) == (0, {})


@needs_gloo
@pytest.mark.usefixtures("alone")
def test_sparse_gradients_are_refused() -> None:
    model = DistributedDataParallel(nn.Embedding(10, 4, sparse=True))
    qc.compress_gradients(model)
    with pytest.raises(
        InputError, match=r"layout torch.sparse_coo, because .* build embeddings with sparse=False"
    ):
        model(torch.tensor([1, 2])).sum().backward()
