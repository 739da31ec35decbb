"""The progress bar of a training: step, losses, time left."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from qcompiler.cli.lines import Lines

if TYPE_CHECKING:
    from qcompiler.training.finetune.loop import Seen


class TrainingBar:
    """One line on stderr that changes; where that is no terminal a new one for each tenth."""

    def __init__(self, steps: int) -> None:
        console = Console(file=sys.stderr)
        self.bar = Progress(
            SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.line = self.bar.add_task("compiling", total=steps)
        self.lines = Lines()

    def __enter__(self) -> "TrainingBar":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def tell(self, what: str, done: int, total: int | None) -> None:
        """What is done before the first step."""
        self.bar.update(self.line, description=what)

    def watch(self, seen: "Seen") -> None:
        self.bar.update(self.line, completed=seen.done, description=described(seen))
        self.lines.note(f"step {seen.done} of {seen.steps}: {described(seen)}", seen.done, seen.steps)


def described(seen: "Seen") -> str:
    """loss 1.234 (float 1.230), validation 1.400 (1.398)"""
    rows = (("loss", seen.losses), ("validation", seen.validation))
    return ", ".join(f"{what} {beside(losses)}" for what, losses in rows if losses)


def beside(losses: dict[str, float]) -> str:
    *plain, low = losses.values()
    return f"{low:.3f}" + "".join(f" (float {value:.3f})" for value in plain)
