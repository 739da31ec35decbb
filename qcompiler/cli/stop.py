"""Ctrl-C as a wish: the first ends work where it can end, the second ends it at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = 130  # 128 + SIGINT, as shells count it


@contextmanager
def stopped_gently() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C was pressed; outside of the main thread it never was."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
