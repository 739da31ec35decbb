"""SGD with 8-bit momentum."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from qcompiler.errors import RecipeError
from qcompiler.optim.base import MIN_NUMEL, Group, LowBitOptimizer, at_least
from qcompiler.optim.codes import SIGNED, CodeMap


class SGD8bit(LowBitOptimizer):
    """SGD with momentum. Arguments and arithmetic are those of torch.optim.SGD; momentum must be said.

    g' = g + weight_decay * w
    b  = momentum * b + (1 - dampening) * g'        b = g' in the first step; 8 bits, signed
    w  = w - lr * b                                 with nesterov: w - lr * (g' + momentum * b)

    `min_numel`, `stochastic_rounding` and `seed` as in `Adam8bit`. A group with momentum 0 keeps no moment.
    """

    moments: ClassVar[Mapping[str, CodeMap]] = {"momentum_buffer": SIGNED}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        min_numel: int = MIN_NUMEL,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "min_numel": min_numel,
                "stochastic_rounding": stochastic_rounding,
                "seed": seed,
            },
        )

    def check(self, group: Group) -> None:
        """Refuse options that make no sense."""
        super().check(group)
        at_least("momentum", group["momentum"], 0)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise RecipeError(
                "nesterov without momentum or with dampening", fix="give momentum > 0 and dampening 0"
            )

    def names(self, group: Group) -> tuple[str, ...]:
        """Momentum, where there is any."""
        return tuple(self.moments) if group["momentum"] != 0 else ()

    def update(
        self, weight: Tensor, grad: Tensor, moments: list[Tensor], group: Group, step: float, fresh: bool
    ) -> None:
        """The order of operations of torch.optim, since another one gives other last bits."""
        momentum = float(group["momentum"])
        if group["weight_decay"] != 0:
            grad = grad.add(weight, alpha=float(group["weight_decay"]))
        for buffer in moments:
            if fresh:
                buffer.copy_(grad)
            else:
                buffer.mul_(momentum).add_(grad, alpha=1 - float(group["dampening"]))
            grad = grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        weight.add_(grad, alpha=-float(group["lr"]))
