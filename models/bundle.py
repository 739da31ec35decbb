"""What a model builder hands over: the module, and the data that go with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import nn

Inputs: TypeAlias = "tuple[Any, ...]"
"""The positional arguments of one call: tensors, and for decoders a cache of them."""

Run: TypeAlias = Callable[..., object]
"""Takes the inputs as the module does; returns its output, or a sequence whose first output is judged."""


class Metric(Protocol):
    """Tells how good a way of running the model is; the float module is itself one: `metric(module)`."""

    @property
    def name(self) -> str:
        """Key of the figure that decides; larger is better."""
        ...

    @property
    def kind(self) -> str:
        """What the outputs are compared with: "labels" or "float" (the outputs of the float module)."""
        ...

    @property
    def samples(self) -> int:
        """How many samples the figures are over."""
        ...

    def inputs(self) -> Sequence[Inputs]:
        """The test batches, in the order they are run."""
        ...

    def __call__(self, run: Run) -> dict[str, float]:
        """Run every test batch and return the figures by name, `samples` among them."""
        ...


class Bundle(NamedTuple):
    """A model ready to compile.

    The module is in eval mode and its parameters take no gradient. Dimension 0 of every input and output that
    has one is the batch, which is 1 in the example inputs. The calibration data can be iterated again, and
    are not those of the test.
    """

    module: nn.Module
    example_inputs: Inputs
    calibration: Sequence[Inputs]
    metric: Metric
