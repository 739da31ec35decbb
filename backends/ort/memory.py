"""A decoder in ONNX Runtime whose cache stays where it is: past and present are one buffer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompiler.backends.memory import check_fits
from qcompiler.backends.ort.failure import failure
from qcompiler.backends.ort.session import flushing_denormals


class BoundMemory:
    """The cache of one sequence, bound to the inputs and outputs of a session.

    Invariant: the session's inputs are tokens, start and the cache, its outputs logits and the cache, in the
    same order.
    """

    def __init__(self, session: Any) -> None:
        import onnxruntime as ort

        self.session, self.binding = session, session.io_binding()
        (self.tokens, self.start, *pasts) = session.get_inputs()
        (self.logits, *presents) = session.get_outputs()
        self.buffers = []
        for past, present in zip(pasts, presents, strict=True):
            shape = [1, *past.shape[1:]]  # the batch may be symbolic; a sequence is one row
            buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            self.binding.bind_ortvalue_input(past.name, buffer)
            self.binding.bind_ortvalue_output(present.name, buffer)
            self.buffers.append(buffer)
        # To ask a binding for its outputs costs as much as a layer, so logits of one shape have a place, too.
        shape = [1, *self.logits.shape[1:]]
        fixed = all(isinstance(size, int) for size in shape)
        self.place = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) if fixed else None
        if self.place is not None:
            self.binding.bind_ortvalue_output(self.logits.name, self.place)
        self.capacity = int(pasts[0].shape[2])
        self.length = 0

    def fill(self, cache: Sequence[Tensor], length: int) -> None:
        for buffer, rows in zip(self.buffers, cache, strict=True):
            buffer.update_inplace(rows.numpy())
        self.length = length

    def feed(self, tokens: Tensor) -> Tensor:
        """[1, T] tokens behind those fed before  -->  the logits that the session returns for them."""
        check_fits(self.length, tokens.shape[1], self.capacity)
        self.binding.bind_cpu_input(self.tokens.name, np.ascontiguousarray(tokens.numpy()))
        self.binding.bind_cpu_input(self.start.name, np.array(self.length, np.int64))
        if self.place is None:
            self.binding.bind_output(self.logits.name, "cpu")
        try:
            with flushing_denormals():
                self.session.run_with_iobinding(self.binding)
        except Exception as error:
            raise failure(error) from error
        self.length += tokens.shape[1]
        if self.place is None:
            return torch.from_numpy(self.binding.get_outputs()[-1].numpy())
        return torch.from_numpy(self.place.numpy()).clone()  # the next call writes there again
