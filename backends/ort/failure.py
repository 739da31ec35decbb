"""Whose a failed call is: sizes that a kernel refuses are the caller's, everything else is the engine's."""

from qcompiler.errors import EngineError, InputError, QCompilerError
from qcompiler.ir.failure import first_line

# A kernel that asserts something of its operands fails like an allocation does; only the words differ.
OF_SIZES = ("shape", "dimension", "axis")


def failure(error: Exception) -> QCompilerError:
    """What to raise for an exception of a session's run.

    ONNX Runtime's exceptions have no class in common. InvalidArgument speaks of what was passed, Fail of that
    or of anything else, and the others (RuntimeException, NotImplemented, EPFail ...) never of it.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

    is_size = isinstance(error, Fail) and any(word in str(error).lower() for word in OF_SIZES)
    if isinstance(error, InvalidArgument) or is_size:
        return InputError(
            "ONNX Runtime cannot run this call", why=first_line(error),
            fix="call it with sizes that its kernels take; backend='reference' takes all",
        )  # fmt: skip
    return EngineError(
        "ONNX Runtime failed on this call", why=first_line(error),
        fix="if memory ran out, call with a smaller batch; else report it with the model",
    )  # fmt: skip
