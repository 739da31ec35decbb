"""The encoder of BERT-base (arXiv 1810.04805), without the pooler."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.models.bundle import Bundle
from qcompiler.models.data import zipf_tokens
from qcompiler.models.statistics import settle_transformer, with_random_weights

VOCABULARY = 30522
LENGTH = 128
EPSILON = 1e-12


class Embeddings(nn.Module):
    """norm(word + position + first segment): [batch, tokens] -> [batch, tokens, width]."""

    def __init__(self, vocabulary: int, positions: int, segments: int, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(positions, width)
        self.segment = nn.Embedding(segments, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = self.word(input_ids) + self.position(positions) + self.segment.weight[0]
        normed: Tensor = self.norm(embedded)
        return normed


class Attention(nn.Module):
    """Self-attention with separate linears, [batch, tokens, width]; `mask` is true where to look."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, heads, tokens, width / heads]"""
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return projected


class Layer(nn.Module):
    """Norm last:  norm(x + attention(x)),  then  norm(x + mlp(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        x = self.norm2(x + self.mlp(x))
        return x


class Bert(nn.Module):
    """Token ids and attention mask, both [batch, tokens] of integers -> the last hidden state."""

    def __init__(
        self,
        *,
        vocabulary: int = VOCABULARY,
        positions: int = 512,
        segments: int = 2,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, positions, segments, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, None, None, :] != 0  # over heads and queries
        x: Tensor = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def bert_base() -> Bundle:
    return with_random_weights(
        Bert,
        partial(settle_transformer, std=0.02),
        partial(zipf_tokens, length=LENGTH, vocabulary=VOCABULARY),
    )
