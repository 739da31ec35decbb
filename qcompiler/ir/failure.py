"""Why a model could not be traced, and which line of the user's code it was.

exception of torch.export  -->  TraceError at file.py:12 (code), because ...; what to do
"""

import traceback
from pathlib import Path

import torch

from qcompiler.errors import TraceError

# Parts of names or messages: these exceptions of the exporter have no class in common.
CONTROL_FLOW = ("data-dependent", "DataDependent", "GuardOnDataDependent", "UserError", "Unsupported")


def is_users_control_flow(error: Exception) -> bool:
    """Whether tracing ended because the model's Python looks at values; such a model can go by region."""
    return any(word in type(error).__name__ or word in str(error)[:400] for word in CONTROL_FLOW)


def explain_failure(model: object, error: Exception) -> TraceError:
    """What to tell of an exception of the exporter: the user's line, and whether control flow is to blame."""
    position = user_position(error)
    if is_users_control_flow(error):
        found = TraceError(
            f"{type(model).__name__} cannot be traced",
            node=position,
            why="the path through the code depends on the values of a tensor, or on Python that has no graph",
            fix="express the choice with torch.where, or compile the parts before and after it",
        )
        found.is_control_flow = True
        return found
    return TraceError(
        f"{type(model).__name__} cannot be traced",
        node=position,
        why=first_line(error),
        fix="see the cause above; torch.export must be able to capture the model",
    )


# Frames below these are not the user's.
LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def user_position(error: BaseException) -> str | None:
    """`file.py:12 (code)` of the deepest frame that is neither torch's nor ours."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*LIBRARY, "<"))
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else None


def first_line(error: BaseException) -> str:
    """`RuntimeError: what it says`, up to the end of its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
