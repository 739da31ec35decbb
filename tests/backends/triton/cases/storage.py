"""Activations and masks in few bits, and draws: all to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qcompiler.numerics.groupwise import GROUP, compress, compress_mask, decompress, decompress_mask
from qcompiler.numerics.philox import Purpose, noise_key, uniform
from tests.backends.groups import hard
from tests.backends.triton.cases.base import as_on_a_device, guarded, margin_is_untouched, poisoned_row, same

TENSOR = 2**32 - 5
GROUPS = 32  # of a program
KEY = noise_key(-1, 2**32 - 1, 2**16 - 1)


def activations(x: Tensor, bits: int) -> None:
    """There and back, against the reference."""
    from qcompiler.backends.triton.kernels.storage import launch_recall, launch_store

    def noise(offset: int, count: int) -> Tensor:
        return uniform(count, KEY, tensor=TENSOR, purpose=Purpose.SAVED_ACTIVATION, offset=offset)

    wanted, wanted_bounds = compress(x, bits, noise)
    (packed, all_packed), (bounds, all_bounds), (back, all_back) = (
        poisoned_row(y.numel(), y.dtype) for y in (wanted, wanted_bounds, x)
    )
    purpose = Purpose.SAVED_ACTIVATION
    launch_store(guarded(x), guarded(KEY), packed, bounds.view(-1, 2), TENSOR, purpose, bits, GROUPS, {})
    assert torch.equal(packed, wanted), f"{int((packed != wanted).sum())} bytes differ"
    assert same(bounds.view(-1, 2), wanted_bounds), "bounds differ"
    launch_recall(guarded(wanted), guarded(wanted_bounds), back, bits, GROUPS, {})
    assert same(back, decompress(wanted, wanted_bounds, bits, len(x), dtype=x.dtype)), "values differ"
    for row, whole in ((packed, all_packed), (bounds, all_bounds), (back, all_back)):
        assert margin_is_untouched(whole, 1, len(row))


def masks(dtype: torch.dtype, count: int) -> None:
    """Both zeros are zeros, and NaN is none."""
    from qcompiler.backends.triton.kernels.masks import launch_recall, launch_store

    x = (torch.rand(count) < 0.5).to(dtype)
    if dtype.is_floating_point:
        x[0], x[1], x[-1] = -0.0, torch.nan, -1e-4
    wanted = compress_mask(x)
    (packed, all_packed), (back, all_back) = (poisoned_row(y.numel(), y.dtype) for y in (wanted, x))
    launch_store(guarded(x), packed, 64, {})
    assert torch.equal(packed, wanted)
    launch_recall(guarded(wanted), back, 64, {})
    assert torch.equal(back, decompress_mask(wanted, count).to(dtype))
    assert margin_is_untouched(all_packed, 1, len(packed)) and margin_is_untouched(all_back, 1, count)


def draws(start: int) -> None:
    from qcompiler.backends.triton.kernels.draws import launch

    values, whole = poisoned_row(1024, torch.float32)
    launch(guarded(KEY), values, TENSOR, 255, start, 512, {})
    assert torch.equal(values, uniform(1024, KEY, tensor=TENSOR, purpose=255, offset=4 * start))
    assert margin_is_untouched(whole, 1, 1024)


def on_a_device() -> None:
    """All that happens on a CUDA device, but for the device: allocations, views, launches, the self-test."""
    from qcompiler.backends.triton.ops import install, storage

    with as_on_a_device(storage):
        install.prove(torch.device("cpu"))
        x = torch.randn(5, 3, GROUP).transpose(0, 2)[::2]
        layout = ([*x.shape], [*x.stride()])
        found, wanted = storage.stored(x, KEY, 7, 2), compress(x, 2, uniform_of(x.numel()))
        assert torch.equal(found[0], wanted[0]) and same(found[1], wanted[1])
        back = storage.recalled(*found, 2, *layout, torch.float64)
        assert back.stride() == x.stride() and torch.equal(
            back, decompress(*wanted, 2, x.numel()).view(x.shape).double()
        )
        assert torch.equal(storage.masked(x.sign()[0, :, 1]), compress_mask(x[0, :, 1]))
        assert torch.equal(storage.drawn(KEY, 9, 7, 0, 6), uniform_of(15)[6:])


def uniform_of(count: int) -> Tensor:
    return uniform(count, KEY, tensor=7, purpose=Purpose.SAVED_ACTIVATION)


STORAGE: Mapping[str, Callable[[], None]] = {
    "storage in 4 bits of hard groups, float32": lambda: activations(hard(torch.float32), 4),
    "storage in 8 bits of hard groups, float16": lambda: activations(hard(torch.float16), 8),
    "storage in 2 bits of hard groups, bfloat16": lambda: activations(hard(torch.bfloat16), 2),
    "storage in 1 bit, aligned": lambda: activations(torch.randn(2 * GROUPS * GROUP), 1),
    "storage in 2 bits of one element": lambda: activations(torch.randn(1), 2),
    "storage in 4 bits of a group less one": lambda: activations(torch.randn(GROUPS * GROUP - 1).half(), 4),
    "masks of bool, aligned": lambda: masks(torch.bool, 1024),
    "masks of bfloat16, ragged": lambda: masks(torch.bfloat16, 1021),
    "masks of float32, ragged": lambda: masks(torch.float32, 77),
    "draws": lambda: draws(7),
    "draws, the last": lambda: draws(2**32 - 256),
    "storage on a device": on_a_device,
}
