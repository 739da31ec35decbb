"""What `qcompiler tune` did not reach, in time or before Ctrl-C."""

from collections.abc import Mapping
from typing import Any

from qcompiler.cli.screen import complain


def draw(told: Mapping[str, Any], what: str) -> None:
    """So many layers or problems; nothing of a run that came to its end."""
    if told["stopped"]:
        complain(f"stopped with {told['left']} {what} left; run it again, and it goes on", kind="warning")
    elif told["left"]:
        complain(
            f"{told['left']} {what} were not reached in time; run it again, and it goes on", kind="warning"
        )
