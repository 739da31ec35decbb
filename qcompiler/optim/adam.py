"""Adam and AdamW with 8-bit moments."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from qcompiler.optim.base import MIN_NUMEL, Group, LowBitOptimizer, at_least, fraction
from qcompiler.optim.codes import SIGNED, UNSIGNED, CodeMap


class Adam8bit(LowBitOptimizer):
    """Adam: weight decay is added to the gradient. Arguments and arithmetic are those of torch.optim.Adam.

    g' = g + weight_decay * w
    m  = beta1 * m + (1 - beta1) * g'                                   8 bits, signed
    v  = beta2 * v + (1 - beta2) * g'^2                                 8 bits, unsigned
    w  = w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Kingma and Ba, arXiv 1412.6980, algorithm 1; the states as in arXiv 2110.02861.

    A parameter with fewer than `min_numel` elements keeps float32 moments. bfloat16 weights are rounded
    stochastically, by noise that follows from (seed, step, parameter, element), unless
    `stochastic_rounding` is False. RecipeError names an option that makes no sense.
    """

    moments: ClassVar[Mapping[str, CodeMap]] = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
    decoupled: ClassVar[bool] = False
    """Whether weight decay acts on the weight and not on the gradient."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
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
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "min_numel": min_numel,
                "stochastic_rounding": stochastic_rounding,
                "seed": seed,
            },
        )

    def check(self, group: Group) -> None:
        """Refuse options that make no sense."""
        super().check(group)
        at_least("eps", group["eps"], 0)
        for name, beta in zip(("betas[0]", "betas[1]"), group["betas"], strict=True):
            fraction(name, beta)

    def update(
        self, weight: Tensor, grad: Tensor, moments: list[Tensor], group: Group, step: float, fresh: bool
    ) -> None:
        """The order of operations of torch.optim, since another one gives other last bits."""
        (first, second), (beta1, beta2) = moments, map(float, group["betas"])
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        if decay != 0 and self.decoupled:
            weight.mul_(1 - lr * decay)
        elif decay != 0:
            grad = grad.add(weight, alpha=decay)
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        weight.addcdiv_(first, denominator, value=-lr / (1 - beta1**step))


class AdamW8bit(Adam8bit):
    """AdamW: weight decay acts on the weight. Arguments and arithmetic are those of torch.optim.AdamW.

    w = w * (1 - lr * weight_decay)      and then Adam's step without it

    Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; everything else as in `Adam8bit`.
    """

    decoupled: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        min_numel: int = MIN_NUMEL,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, maximize=maximize, min_numel=min_numel,
            stochastic_rounding=stochastic_rounding, seed=seed,
        )  # fmt: skip
