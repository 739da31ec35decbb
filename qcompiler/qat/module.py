"""A model in training: its own parameters under their own names, and fake quantization between its ops."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError
from qcompiler.ir import flatten_inputs
from qcompiler.job import Job
from qcompiler.passes.decide import Decision
from qcompiler.passes.qat.insert import HOME, Network
from qcompiler.qat.quantizers import ValueQuantizer

if TYPE_CHECKING:
    from qcompiler.qat.convert import Converted


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What training started from, and the network that it runs; a value that copies share."""

    job: Job
    decision: Decision
    network: Network
    method: str

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prepared":
        return self


class QATModule(nn.Module):
    """Takes and gives what the model does; `prepare_qat` makes it.

    The parameters and buffers of the model have their names, so that its `load_state_dict(..., strict=False)`
    takes what was trained; the state of fake quantization stands under `fake_quant`.
    """

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self._prepared = prepared

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        graph = self._prepared.job.original
        flat = flatten_inputs(graph, args, kwargs)
        results = fx.Interpreter(self, graph=self._prepared.network.graph).run(*flat)
        return pytree.tree_unflatten(list(results), graph.signature.out_spec)

    def convert(self) -> "Converted":
        """The integer graph of the model as it is trained now; as `convert_qat`."""
        from qcompiler.qat.convert import convert_qat

        return convert_qat(self)

    def scale_parameters(self) -> Iterator[nn.Parameter]:
        """The learned scales and bounds: often at a rate of their own; only PACT's bounds want decay."""
        yield from getattr(self, HOME).parameters()

    def freeze_observers(self) -> None:
        """Stop observing; from now on scales stand, or are learned."""
        for quantizer in self.value_quantizers().values():
            quantizer.freeze()

    def value_quantizers(self) -> Mapping[str, ValueQuantizer]:
        """The modules that round values, by the value's name."""
        specs = self._prepared.network.values
        found = {spec.value: self.get_submodule(name) for name, (spec, _) in specs.items()}
        return {name: module for name, module in found.items() if isinstance(module, ValueQuantizer)}

    @torch.no_grad()
    def folded(self) -> Mapping[str, Tensor]:
        """The constants of the canonical graph, as they follow from the parameters now."""
        network, names = self._prepared.network, self._prepared.job.original.tensors
        values: Sequence[Tensor] = fx.Interpreter(self, graph=network.folded).run()
        return {name: value.detach().clone() for name, value in zip(names, values, strict=True)}


def place(module: nn.Module, path: str, found: nn.Module | Tensor, *, kept: bool = True) -> None:
    """Put a module, parameter or buffer at a dotted path; buffers that are `kept` are part of the state."""
    *parents, last = path.split(".")
    for name in parents:
        inner = getattr(module, name, None)
        if inner is None:
            inner = nn.Module()
            module.add_module(name, inner)
        if not isinstance(inner, nn.Module):
            raise taken(path)
        module = inner
    if hasattr(module, last):
        raise taken(path)
    match found:
        case nn.Parameter():
            module.register_parameter(last, found)
        case nn.Module():
            module.add_module(last, found)
        case _:
            module.register_buffer(last, found, persistent=kept)


def taken(path: str) -> InputError:
    return InputError(
        f"the model cannot have a tensor at '{path}'", why="a module in training needs that name itself",
        fix="rename that part of the model",
    )  # fmt: skip
