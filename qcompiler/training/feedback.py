"""The mean of what several processes hold, sent in 8 bits, and what of it the sending lost.

Each of W processes owns one of W shards.

a = g + e                                            what is to be sent, and was left over before
to its owner    a_rk  ~  Q(a_rk) = a_rk - e_rk       from process r, of shard k, r != k
the owner       m_k = (a_kk + sum over r != k of Q(a_rk)) / W
to all          m_k  ~  Q(m_k)                       e_kk = W (m_k - Q(m_k))

So at every step   W Q(m) + sum_r e'_r = sum_r (g_r + e_r),   and over T of them, from e = 0:

    sum_t Q(m_t)  =  sum_t mean_r g_rt  -  mean_r e_rT

What was lost is sent later, and does not grow: an error is what one rounding leaves. Seide et al. 2014 and
EF-SGD (arXiv 1901.09847) keep the error of the sender, DoubleSqueeze (arXiv 1905.05957) and 1-bit Adam (arXiv
2102.02888) that of the owner beside it. Here both are one number for each gradient: an owner sends nothing to
itself, so the place of its own error is free, and W times the error of the mean comes to the same there. It
belongs to a gradient and not to a shard, and so it stays true when the shards are cut anew.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.training.messages import Messages


@dataclass(frozen=True, kw_only=True, eq=False)
class ToEach:
    """A message for each other process, in the order of ranks: uint8 [W - 1, bytes]; the same comes back."""

    messages: Tensor

    @property
    def sent(self) -> int:
        return self.messages.numel()


@dataclass(frozen=True, kw_only=True, eq=False)
class ToAll:
    """One message for all: uint8 [bytes]; those of all W come back, [W, bytes]."""

    message: Tensor
    world: int

    @property
    def sent(self) -> int:
        return (self.world - 1) * self.message.numel()


Exchange = Generator[ToEach | ToAll, Tensor, Tensor]
"""Yields what is to cross, is sent what came, and returns the mean at last. Others carry it."""


def shard_size(count: int, world: int, block: int) -> int:
    """Elements of a shard: whole blocks, W of them at least `count`."""
    return -(-count // (world * block)) * block


def mean_of_all(a: Tensor, rank: int, messages: Messages, dtype: torch.dtype = torch.float32) -> Exchange:
    """The mean over the processes in `dtype`, [W, n] as the shards `a`, float32, which become the error.

    The mean has the same bits everywhere, since all decode the same messages. The error is against what
    `dtype` holds of it. Where anything is not finite, neither are the mean and the error.
    """
    world = len(a)
    others = a[:rank], a[rank + 1 :]
    sent = [messages.encode(shards) for shards in others]
    for shards, codes in zip(others, sent, strict=True):
        shards.sub_(messages.decode(codes))
    came = yield ToEach(messages=torch.cat(sent))
    mean = messages.decode(came).sum(0).add_(a[rank]).div_(world)
    message = messages.encode(mean.unsqueeze(0))[0]
    everywhere = yield ToAll(message=message, world=world)
    found = messages.decode(everywhere).to(dtype)
    a[rank] = mean.sub_(found[rank]).mul_(world)
    return found
