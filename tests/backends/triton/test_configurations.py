"""Rows of configurations against what devices have, without compiling anything."""

from __future__ import annotations

import pytest

from qcompiler.backends.triton.configurations import CONFIGURATIONS, SHARED, chosen, shared_of
from qcompiler.errors import TargetError

KINDS = sorted({(row.kernel, row.mode, row.heavy) for row in CONFIGURATIONS})


@pytest.mark.parametrize("capability", [*SHARED, 103, 121])
def test_what_serves_a_device_fits_into_its_shared_memory(capability: int) -> None:
    served = 0
    for kernel, mode, heavy in KINDS:
        try:
            row = chosen(kernel, capability, mode=mode, heavy=heavy)
        except TargetError as error:
            assert f"{kernel} {mode} on a device of compute capability {capability / 10}" in str(error)
            continue
        served += 1
        assert row.bounds.shared <= shared_of(capability), row
    assert served > len(KINDS) // 2


def test_devices_between_two_that_are_known_have_the_memory_of_the_earlier_one() -> None:
    assert [shared_of(one) // 1024 for one in (75, 80, 86, 87, 89, 90, 103, 120, 121)] == [
        163, 163, 99, 163, 99, 227, 227, 99, 99
    ]  # fmt: skip
