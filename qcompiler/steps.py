"""The progress bar that a person sees while a model is compiled."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Steps:
    """One line on stderr: the current step, a bar where its length is known, and the time it takes."""

    def __init__(self, *, visible: bool) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(file=sys.stderr)  # the one of now: tracing hides it for a while
        drawn = visible and console.is_terminal  # a log file is no place for a moving bar
        self.bar = Progress(*columns, console=console, transient=True, disable=not drawn)
        self.current: tuple[str, TaskID] | None = None

    def __enter__(self) -> "Steps":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def tell(self, what: str, done: int = 0, total: int | None = None) -> None:
        if self.current is None or self.current[0] != what:
            if self.current is not None:
                self.bar.update(self.current[1], total=1, completed=1, visible=False)
            self.current = (what, self.bar.add_task(what, total=total))
        self.bar.update(self.current[1], completed=done, total=total)
