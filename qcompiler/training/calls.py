"""The compiled call of a model: what torch.compile does when it meets its limits is said, and not done."""

import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit
from torch.utils import _pytree as pytree

from qcompiler.errors import PlanError, QCompilerError
from qcompiler.training.session import Training

VERSIONS = 64  # of one function of a model, by the shapes of its inputs; torch stops at 8


def compiled(model: nn.Module, training: Training, *, fullgraph: bool = False) -> Callable[..., Any]:
    """The call of a module as a training compiles it; without gradients the call as it was.

    Raises PlanError where the training does, and before a shape would be trained in float since there were
    too many before it. Warns where gradients flow through a call and nothing of it was compiled.
    """
    # torch's overloads lag behind its signature
    run = torch.compile(  # type: ignore[call-overload]
        call_of(model), backend=training, dynamic=False, fullgraph=fullgraph, isolate_recompiles=True
    )
    is_told = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_told
        if not torch.is_grad_enabled():
            return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        versions = max(VERSIONS, config.recompile_limit)
        try:
            with config.patch(
                allow_rnn=True,  # else torch breaks the graph at an LSTM, and leaves that in float
                recompile_limit=versions,
                accumulated_recompile_limit=sys.maxsize,  # of all models that share a function
                fail_on_recompile_limit_hit=True,  # else what comes next is in float, unsaid
            ):
                results = run(*args, **kwargs)
        except FailOnRecompileLimitHit as error:
            raise too_many(model, versions) from error
        except BackendCompilerFailed as error:
            if (inner := own(error)) is not None:
                raise inner from error
            raise
        if not (training.pieces or is_told) and has_gradients(results):
            is_told = True
            warnings.warn(
                f"nothing of this {type(model).__name__} was compiled, so that it trains in float; "
                "TORCH_LOGS=graph_breaks says at which lines torch gave up",
                stacklevel=3,
            )
        return results

    return call


def call_of(model: nn.Module) -> Callable[..., Any]:
    """The call of a module, hooks included.

    Its code is its own, for torch keeps what it compiled with the code: it lives as long as the model, and no
    other model's is looked through before it.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    return types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


def too_many(model: nn.Module, versions: int) -> PlanError:
    return PlanError(
        f"a function of this {type(model).__name__} was compiled {versions} times; the next would be float",
        why="each new shape of its inputs, and each new number that its Python reads, is compiled anew",
        fix="pad batches to a few sizes, or raise torch._dynamo.config.recompile_limit",
    )


def has_gradients(results: Any) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves(results))


def own(error: BackendCompilerFailed) -> QCompilerError | None:
    """The error of ours behind what torch.compile raises."""
    inner: BaseException | None = error.inner_exception
    while inner is not None:
        if isinstance(inner, QCompilerError):
            return inner
        inner = inner.__cause__
    return None
