"""How long work reports where it is: a plain callback, so that only the interface draws."""

from collections.abc import Callable

Tell = Callable[[str, int, int | None], None]
"""Called with what is being done, how many steps are done, and of how many (None if unknown)."""


def silent(what: str, done: int, total: int | None) -> None:
    """Tell nobody."""
