"""What storing and computing take on a device, measured where they will run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.fake_tensor import unset_fake_temporarily

from qcompiler.ir import storage as _  # noqa: F401 - registers the operators
from qcompiler.numerics.philox import noise_key
from qcompiler.tune.measure import interleave

SIDE = 512  # of the matrices: small enough to take milliseconds, large enough to be computed at full speed
ROUNDS = 3


MARGIN = 0.1  # a gain below it is within what repeated timings differ by, and not worth the rounding


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that a product takes in float, and in few bits with its operands brought into them."""

    floating: float
    few: float

    @property
    def pays(self) -> bool:
        """Whether few bits are faster, by more than what cannot be told from noise."""
        return self.floating >= (1 + MARGIN) * self.few


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds to store a byte in few bits and recall it, and seconds for one operation of a product."""

    per_byte: float
    per_operation: float


@contextmanager
def as_it_runs() -> Iterator[None]:
    """Real tensors, and nothing around an operator that is not there when a step runs.

    While torch captures a graph every call passes through a dispatcher in Python, 20 us each: operators that
    make many calls, convolutions on codes with two hundred, would look a third slower than they are.
    """
    with (
        unset_fake_temporarily(),
        no_python_dispatcher(),
        torch.no_grad(),
        torch._C._AutoDispatchBelowAutograd(),
    ):
        yield


@contextmanager
def clock_on(device: torch.device) -> Iterator[Callable[[], float]]:
    """A clock of seconds that count there: on a CPU those of this thread, which works alone meanwhile.

    Threads that wait for each other on a busy machine spin, for 16 ms where the work is 10 us, and no clock
    tells spinning from work. Both forms of a product divide among threads alike, so that what one thread says
    of them is taken to hold for several.
    """
    if device.type != "cpu":

        def when_idle() -> float:
            torch.get_device_module(device).synchronize()
            return time.perf_counter()

        yield when_idle
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield time.thread_time
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=8)
def speed(device: torch.device) -> Speed:
    """The figures of a device; measured once in a process, in about a tenth of a second."""
    own = torch.Generator(device).manual_seed(0)  # whoever trains draws as if nothing had been measured
    x = torch.randn(SIDE, SIDE, device=device, generator=own)
    key = noise_key(0).to(device)
    layout = ([SIDE, SIDE], [SIDE, 1], x.dtype)
    ops = torch.ops.qcompiler

    def store_and_recall() -> None:
        ops.recall(*ops.store(x, key, 0, 4), 4, *layout)

    forms = {"store": store_and_recall, "product": lambda: x @ x}
    with clock_on(device) as clock:
        timing = interleave(forms, rounds=ROUNDS, clock=clock)
    return Speed(
        per_byte=timing.median("store") / (4 * SIDE**2),
        per_operation=timing.median("product") / (2 * SIDE**3),
    )
