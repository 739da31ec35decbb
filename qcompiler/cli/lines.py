"""Progress where there is no terminal: a line on stderr now and then, which a log can hold."""

import sys
import time
from collections.abc import Callable

from rich.console import Console

TENTHS = 10
PATIENCE = 5.0  # seconds between two lines of one phase, at least


class Lines:
    """The line of a phase with steps at once, then one for each tenth of it, and none right after another."""

    def __init__(self, *, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_silent = Console(file=sys.stderr).is_terminal  # a bar is drawn there
        self.patience, self.clock = patience, clock
        self.phase, self.tenth, self.last = "", 0, clock()

    def tell(self, what: str, done: int, total: int | None) -> None:
        """A phase by its name, as `Tell` has it."""
        if total and what != self.phase:
            self.phase, self.tenth = what, 0
            self.say(f"{what}: {total} steps" if not done else f"{what}: {done} of {total}")
        elif total:
            self.note(f"{what}: {done} of {total}", done, total)

    def note(self, line: str, done: int, total: int) -> None:
        """A line that is said where another tenth is done and the last was said long enough ago."""
        tenth = TENTHS * done // total
        if tenth > self.tenth and self.clock() - self.last >= self.patience:
            self.tenth = tenth
            self.say(line)

    def say(self, line: str) -> None:
        self.last = self.clock()
        if not self.is_silent:
            print(line, file=sys.stderr, flush=True)
