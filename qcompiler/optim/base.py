"""What 8-bit optimisers share: where states live, how a step walks over them, how they are saved and read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from qcompiler.errors import InputError, RecipeError
from qcompiler.optim.codes import BLOCK, CodeMap, blocks
from qcompiler.optim.rounding import to_bfloat16, weight_noise
from qcompiler.optim.shards import beside, first_element, gradient, local, scales_beside

MIN_NUMEL = 4096
"""Below this a state stays float32: it saves nothing worth having (2110.02861, section 2.3)."""

CHUNK = 2**18
"""Elements that are float32 at one time: whole blocks, few enough to stay in a cache of megabytes."""

Group = dict[str, Any]


class LowBitOptimizer(Optimizer, ABC):
    """An optimiser of torch whose moments are codes and block maxima between two steps.

    step:  m = decode(codes, absmax);  update(weight, gradient, m);  codes, absmax = encode(m)

    state per moment of a parameter with n elements:
        <name>          uint8, the parameter's shape       n bytes
        <name>_absmax   float32, one per 256 elements      n / 64 bytes
    and one float32 tensor <name> where the parameter has fewer than `min_numel` elements.

    Both are plain tensors (DTensors where the parameter is one), and all options are entries of a parameter
    group: nothing else is needed to save, copy and go on.
    """

    moments: ClassVar[Mapping[str, CodeMap]]
    """The states with a number per weight, and the map that each is kept in."""

    @abstractmethod
    def update(
        self, weight: Tensor, grad: Tensor, moments: list[Tensor], group: Group, step: float, fresh: bool
    ) -> None:
        """One step in place, on flat float tensors; `fresh` in the first step, where all moments are 0."""

    def names(self, group: Group) -> tuple[str, ...]:
        """The moments that this group keeps."""
        return tuple(self.moments)

    def add_param_group(self, param_group: Group) -> None:
        """Take up further parameters; options that the group does not give are those of the constructor."""
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def check(self, group: Group) -> None:
        """Refuse options that make no sense."""
        at_least("lr", group["lr"], 0)
        at_least("weight_decay", group["weight_decay"], 0)
        at_least("min_numel", group["min_numel"], 0)
        for parameter in group["params"]:
            if not parameter.is_floating_point():
                raise InputError(
                    f"a parameter of type {parameter.dtype}", fix="give parameters of a real floating type"
                )

    @torch.no_grad()
    def step(  # type: ignore[override]  # the overloads of the base say the same in two lines
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """One step of every parameter that has a gradient; the loss, where a closure computes it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ordinals = count()
        for group in self.param_groups:
            for parameter in group["params"]:
                ordinal = next(ordinals)
                if parameter.grad is not None:
                    self._step(parameter, gradient(parameter, parameter.grad), group, ordinal)
        return loss

    def _step(self, parameter: Tensor, grad: Tensor, group: Group, ordinal: int) -> None:
        state, names = self.state[parameter], self.names(group)
        fresh = [name for name in names if state.get(name) is None]
        for name in fresh:
            state.update(self._zeros(parameter, name, group["min_numel"]))
        start_of_run = torch.zeros((), dtype=torch.float32, device="cpu")  # read in every step, so on the CPU
        state["step"] = state.get("step", start_of_run) + 1
        step = state["step"].item()

        work = torch.promote_types(parameter.dtype, torch.float32)
        rounds = parameter.dtype == torch.bfloat16 and group["stochastic_rounding"]
        start = first_element(parameter) if rounds else 0
        whole = local(parameter)
        values = whole.contiguous()
        weights, grads = values.view(-1), grad.contiguous().view(-1)
        for begin in range(0, weights.numel(), CHUNK):
            here = slice(begin, begin + CHUNK)
            weight = weights[here].to(work)  # a view of the parameter, unless its type is narrower
            moments = [self._read(state, name, here, work) for name in names]
            direction = -grads[here].to(work) if group["maximize"] else grads[here].to(work)
            self.update(weight, direction, moments, group, step, bool(fresh))
            for name, moment in zip(names, moments, strict=True):
                self._write(state, name, here, moment)
            if rounds:
                noise = weight_noise(
                    weight.numel(), seed=group["seed"], step=int(step), ordinal=ordinal,
                    offset=start + begin, device=weight.device,
                )  # fmt: skip
                weight = to_bfloat16(weight, noise)
            if values.dtype != work:
                weights[here] = weight.to(values.dtype)
        if values is not whole:
            whole.copy_(values)

    def _zeros(self, parameter: Tensor, name: str, min_numel: int) -> dict[str, Tensor]:
        """The state of a moment that is 0 everywhere."""
        part = local(parameter)
        # The whole parameter decides, so that all processes of a mesh keep the same states.
        if parameter.numel() < min_numel:
            work = torch.promote_types(part.dtype, torch.float32)
            return {name: beside(parameter, torch.zeros(part.shape, dtype=work, device=part.device))}
        codes = torch.full(part.shape, self.moments[name].zero, dtype=torch.uint8, device=part.device)
        absmax = torch.zeros(blocks(part.numel()), dtype=torch.float32, device=part.device)
        return {name: beside(parameter, codes), f"{name}_absmax": scales_beside(parameter, absmax)}

    def _read(self, state: dict[str, Tensor], name: str, here: slice, work: torch.dtype) -> Tensor:
        flat = local(state[name]).view(-1)[here]
        if f"{name}_absmax" not in state:
            return flat  # float, and updated in place
        return self.moments[name].decode(flat, _scales(state, name, here, flat.numel())).to(work)

    def _write(self, state: dict[str, Tensor], name: str, here: slice, moment: Tensor) -> None:
        if f"{name}_absmax" in state:
            codes, absmax = self.moments[name].encode(moment)
            local(state[name]).view(-1)[here] = codes
            _scales(state, name, here, moment.numel()).copy_(absmax)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # those of a checkpoint that torch.optim wrote lack our options
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, to the same bits; float moments, as torch.optim saves them, are encoded.

        The base class casts every tensor to the parameter's type: codes to float, and the scales of bfloat16
        parameters to bfloat16. So what was saved is put back as it was, before any other hook sees it.
        """
        saved: dict[str, Any] = {}

        def keep(_: Optimizer, given: dict[str, Any]) -> None:
            saved.update(given)
            for parameter, state in self._pairs(given):
                self._check_state(parameter, state)

        hooks = (
            self.register_load_state_dict_pre_hook(keep),
            self.register_load_state_dict_post_hook(lambda _: self._restore(saved), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _pairs(self, saved: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """The parameters that the saved state knows, each with its own."""
        ours = [parameter for group in self.param_groups for parameter in group["params"]]
        theirs = [number for group in saved["param_groups"] for number in group["params"]]
        for parameter, number in zip(ours, theirs, strict=False):  # the base class refuses another length
            if number in saved["state"]:
                yield parameter, saved["state"][number]

    def _check_state(self, parameter: Tensor, state: dict[str, Any]) -> None:
        for name in self.moments:
            value, scales = state.get(name), state.get(f"{name}_absmax")
            if value is None:
                continue
            wanted = scales_beside(parameter, torch.zeros(blocks(local(parameter).numel()))).shape
            fits = isinstance(value, DTensor) == isinstance(parameter, DTensor)
            fits &= value.shape == parameter.shape
            fits &= value.is_floating_point() if scales is None else scales.shape == wanted
            if not fits:
                raise InputError(
                    f'a saved "{name}" of {value.dtype} and shape {tuple(value.shape)} with '
                    + ("no scales" if scales is None else f"scales {tuple(scales.shape)}"),
                    why=f"the parameter has shape {tuple(parameter.shape)} and its scales {tuple(wanted)}",
                    fix="load it into the same model, sharded over the same number of processes, there with "
                    "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict",
                )

    def _restore(self, saved: dict[str, Any]) -> None:
        for parameter, given in self._pairs(saved):
            state = self.state[parameter]
            for name, value in given.items():
                if isinstance(value, Tensor):
                    on = value.device if name == "step" else parameter.device
                    state[name] = value.to(on, copy=True).contiguous()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.state:
                    self._encode_floats(parameter, self.state[parameter], group["min_numel"])

    def _encode_floats(self, parameter: Tensor, state: dict[str, Any], min_numel: int) -> None:
        for name in self.moments:
            value = state.get(name)
            if value is None or not value.is_floating_point():
                continue
            if parameter.numel() < min_numel:
                state[name] = value.to(torch.promote_types(value.dtype, torch.float32))
                continue
            part = local(value).contiguous()
            codes, absmax = self.moments[name].encode(part.view(-1))
            state[name] = beside(parameter, codes.view(part.shape))
            state[f"{name}_absmax"] = scales_beside(parameter, absmax)


def at_least(name: str, value: float | Tensor, low: float) -> None:
    """Refuse an option that is below `low`, or no number."""
    if not low <= float(value) < float("inf"):
        raise RecipeError(f"{name} = {float(value):g}", fix=f"use a number from {low:g} on")


def fraction(name: str, value: float | Tensor) -> None:
    """Refuse an option that is not in [0, 1)."""
    if not 0 <= float(value) < 1:
        raise RecipeError(f"{name} = {float(value):g}", fix="use a number from 0 up to, and not, 1")


def _scales(state: dict[str, Tensor], name: str, here: slice, numel: int) -> Tensor:
    """The scales of the blocks of a chunk, as a view."""
    first = here.start // BLOCK
    return local(state[f"{name}_absmax"]).view(-1)[first : first + blocks(numel)]
