"""Warnings that point to the user's line: the first frame that is neither this package's nor torch's."""

import sys
import warnings
from types import FrameType

INSIDE = ("qcompiler", "torch", "contextlib", "functools")
GENERATED = "<eval_with_key>"  # what torch.fx calls the code that it makes of a graph


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Where all frames are inside, as in a thread of torch's, no line is pointed to."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and is_inside(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + is_inside(frame))


def is_inside(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] in INSIDE or frame.f_code.co_filename.startswith(GENERATED)
