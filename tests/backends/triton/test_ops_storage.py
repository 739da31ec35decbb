"""How a CUDA device gets kernels for what is stored in few bits: after they were proven, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.ops import install, storage
from qcompiler.errors import EngineError, InputError
from qcompiler.ir.draws import draws
from qcompiler.ir.storage import recall, recall_mask, store, store_mask
from qcompiler.numerics.philox import noise_key
from qcompiler.training.kernels import provide

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
REFERENCE = {
    "drawn": draws, "stored": store, "recalled": recall, "masked": store_mask, "unmasked": recall_mask
}  # fmt: skip
WHAT = {"drawn": "draws", "recalled": "values", "masked": "marks", "unmasked": "masks"}
KEY = noise_key(0)
PACKED, BOUNDS = store(torch.zeros(9), KEY, 0, 4)


@pytest.fixture
def _proven_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, operator in REFERENCE.items():
        monkeypatch.setattr(install, name, operator)


@pytest.mark.usefixtures("_proven_by_reference")
@pytest.mark.parametrize("name", WHAT)
def test_wrong_numbers_are_found_before_they_are_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any) -> Tensor:
        found: Tensor = REFERENCE[name](*given).clone()
        found[-1] += 1
        return found

    install.prove(CPU)
    monkeypatch.setattr(install, name, wrong)
    with pytest.raises(EngineError, match=f"the {WHAT[name]} are not those of the reference"):
        install.prove(CPU)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ImportError("no module"), "Triton cannot be imported: no module"),
        (
            RuntimeError("no driver\nwas found"),
            "no kernel can be launched on cuda:0 at the self-test of kernels for training, because no driver "
            "was found",
        ),
        (EngineError("the codes differ"), "the codes differ"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_a_step_goes_without_is_said(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove(device: torch.device) -> None:
        raise error

    monkeypatch.setattr(install, "prove", prove)
    install.install.cache_clear()
    assert provide(CUDA) == sentence
    assert provide(torch.device("meta")) == ""


def test_operators_have_kernels_for_cuda_once_they_are_registered() -> None:
    install.register()
    for operator, _ in install.KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operator._qualname, "CUDA")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: storage.stored(torch.zeros(9, dtype=torch.float64), KEY, 0, 4), "cannot compress"),
        (lambda: storage.stored(torch.zeros(9), KEY, 0, 3), "in 3 bits"),
        (lambda: storage.stored(torch.zeros(9), KEY[:2], 0, 4), "a noise key of"),
        (lambda: storage.recalled(PACKED, BOUNDS, 4, [999], [1], torch.half), "are 4 groups"),
        (lambda: storage.unmasked(torch.zeros(2, dtype=torch.uint8), [9, 9], [9, 1], torch.bool), "81 bits"),
        (lambda: storage.drawn(KEY, 9, 0, 0, 2**34), "no draws"),
    ],
)  # fmt: skip
def test_what_the_reference_refuses_is_refused(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()


def test_nothing_is_stored_of_nothing() -> None:
    none = torch.zeros(0)
    packed, bounds = storage.stored(none, KEY, 0, 4)
    assert packed.shape == (0,) and bounds.shape == (0, 2)
    assert storage.recalled(packed, bounds, 4, [0, 3], [3, 1], torch.float16).shape == (0, 3)
    assert storage.unmasked(storage.masked(none), [0], [1], torch.bool).shape == (0,)
