"""Attention and rotary positions as operators: by token or by head, and over a cache of keys and values."""

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.ir.gradients import recomputed


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """softmax(scale q k^T + mask) v per head (arXiv 1706.03762, eq. 1).

    [B, S, heads * D], [B, T, kv_heads * D]  -->  [B, S, heads * D], or by head ([B, heads, S, D]) all around.
    `mask` [..., S, T] is true where to look, or is added; a key head serves heads / kv_heads query heads.
    """
    by_token = q.dim() == 3

    def by_head(x: Tensor, count: int) -> Tensor:
        return x.view(*x.shape[:2], count, -1).transpose(1, 2) if by_token else x

    y = F.scaled_dot_product_attention(
        by_head(q, heads), by_head(k, kv_heads), by_head(v, kv_heads),
        attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=heads != kv_heads,
    )  # fmt: skip
    return y.transpose(1, 2).flatten(2) if by_token else y.clone()


attention = torch.library.custom_op("qcompiler::attention", attended, mutates_args=())
recomputed(attention, attended)


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
) -> Tensor:
    if q.dim() == 4:
        return q.new_empty((*q.shape[:3], v.shape[3]))
    return q.new_empty((*q.shape[:2], heads * (v.shape[2] // kv_heads)))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b)  -->  (a cos - b sin, b cos + a sin)         x [..., T, D], cos and sin [T, D / 2]"""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Turn every pair (x_i, x_{i + D/2}) of a head by its token's angle (arXiv 2104.09864, eq. 34).

    x [B, heads, T, D], or by token [B, T, heads * D]; cos and sin [T, D / 2]  -->  the shape of x.
    """
    if x.dim() == 4:
        return turned(x, cos, sin)
    by_head = x.view(*x.shape[:2], heads, -1).transpose(1, 2)
    return turned(by_head, cos, sin).transpose(1, 2).flatten(2)


rotary = torch.library.custom_op("qcompiler::rotary", rotated, mutates_args=())
recomputed(rotary, rotated)


@rotary.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("qcompiler::cached_attention", mutates_args=())
def cached_attention(
    qkv: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
    positions: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write new keys and values into a cache of fixed capacity; each token sees the rows up to its own.

    qkv [B, T, (H + 2 K) D]: queries of H heads, keys and values of K heads, side by side.
    past_keys, past_values [B, K, C, D]; positions [T]: consecutive, all below C.
    cos, sin [at least C, D / 2]: rotary tables that turn queries and keys; None for no rotation.
    scale: of the products, 1 / sqrt(D) if None.

    Returns what is attended [B, T, H D], and the cache [B, K, C, D]. Rows behind the last position are those
    of the past; an engine may clear them, since they are written before a token sees them.
    """
    batch, tokens, _ = qkv.shape
    kv_heads, width = past_keys.shape[1], past_keys.shape[3]
    q, k, v = (
        part.reshape(batch, tokens, -1, width).transpose(1, 2)
        for part in torch.split(qkv, [heads * width, kv_heads * width, kv_heads * width], -1)
    )
    if cos is not None and sin is not None:
        q, k = (turned(x, cos[positions], sin[positions]) for x in (q, k))
    keys, values = past_keys.index_copy(2, positions, k), past_values.index_copy(2, positions, v)
    visible = torch.arange(past_keys.shape[2], device=qkv.device) <= positions[:, None]
    y = F.scaled_dot_product_attention(q, keys, values, visible, scale=scale, enable_gqa=heads != kv_heads)
    return y.transpose(1, 2).reshape(batch, tokens, heads * width), keys, values


@cached_attention.register_fake
def _(
    qkv: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
    positions: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    attended = qkv.new_empty((*qkv.shape[:2], heads * past_keys.shape[3]))
    return attended, torch.empty_like(past_keys), torch.empty_like(past_values)
