"""What a GPU does per second, as far as predictions have to know."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from qcompiler.tune.database import Core


@dataclass(frozen=True, kw_only=True)
class Device:
    """rates: operations per second of its tensor cores, by type. Bandwidths in bytes, times in seconds.

    name is that of CUDA; a family of devices that differ little in what matters here shares a prefix of it.
    """

    name: str
    capability: int
    processors: int
    rates: Mapping[str, float]
    bandwidth: float
    l2_bandwidth: float
    l2_bytes: float
    launch: float

    @property
    def core(self) -> Core:
        """What rows of the database belong to."""
        return Core(isa=f"sm_{self.capability}", processor=f"{self.name}, {self.processors} processors")


# Rates that were reached with random data, 81 % of the data sheet's; L2 as published for reads. What
# `benchmarks.gpu` finds on a device takes their place here.
DEVICES: tuple[Device, ...] = (
    Device(
        name="NVIDIA H100", capability=90, processors=132,
        rates={"bf16": 798e12, "int8": 1600e12, "fp8": 1600e12},
        bandwidth=3.0e12, l2_bandwidth=5.5e12, l2_bytes=50e6, launch=2e-6,
    ),
    Device(
        name="NVIDIA H200", capability=90, processors=132,
        rates={"bf16": 788e12, "int8": 1600e12, "fp8": 1600e12},
        bandwidth=4.3e12, l2_bandwidth=5.5e12, l2_bytes=50e6, launch=2e-6,
    ),
    Device(
        name="NVIDIA A100", capability=80, processors=108,
        rates={"bf16": 250e12, "int8": 500e12},
        bandwidth=1.7e12, l2_bandwidth=4.0e12, l2_bytes=40e6, launch=2e-6,
    ),
)  # fmt: skip


def device_like(name: str, capability: int, processors: int) -> Device:
    """A device by what CUDA says of it.

    One that no row names gets the rates of a row of its capability, or else of the first, in proportion to
    its processors: what matters is which candidate is first, and not how many seconds it takes.
    """
    named = [row for row in DEVICES if name.startswith(row.name)]
    akin = [row for row in DEVICES if row.capability == capability]
    like = (named or akin or DEVICES)[0]
    share = processors / like.processors  # of a named one, too: cards and slices of one name differ
    return replace(
        like, name=name, capability=capability, processors=processors,
        rates={kind: rate * share for kind, rate in like.rates.items()},
        bandwidth=like.bandwidth * share, l2_bandwidth=like.l2_bandwidth * share,
    )  # fmt: skip


def device_of(device: torch.device) -> Device:
    """The device that a CUDA tensor is on."""
    said = torch.cuda.get_device_properties(device)
    return device_like(said.name, 10 * said.major + said.minor, said.multi_processor_count)
