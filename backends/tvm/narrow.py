"""One thread of torch between our calls: what it computes there is small, and others would spin behind it on
cores that ours want.

The number is kept by the process for threads to come, and by every thread that has computed for itself. So
who enters takes over what was set before the first who is inside, and whoever leaves sets that again: two who
saved and restored it by themselves would each put back what the other had set.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LOCK = threading.Lock()
INSIDE: list[int] = []  # what was set before, once for everyone inside


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on the calling thread alone; may be entered by several at once."""
    with LOCK:
        before = INSIDE[0] if INSIDE else torch.get_num_threads()
        INSIDE.append(before)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with LOCK:
            INSIDE.pop()
            torch.set_num_threads(before)
