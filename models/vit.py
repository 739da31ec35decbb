"""Vision transformer ViT-B/32 for 224x224 images (arXiv 2010.11929)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.models.bundle import Bundle
from qcompiler.models.data import structured_images
from qcompiler.models.statistics import settle_transformer, with_random_weights


class Attention(nn.Module):
    """Self-attention with one linear for queries, keys and values, [batch, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, tokens, width / heads]
        y = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.projection(y.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class Block(nn.Module):
    """Norm first:  x + attention(norm(x)),  then  x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class VisionTransformer(nn.Module):
    """Patches as tokens after a class token, learned positions, encoder blocks, a head on the class token."""

    def __init__(
        self,
        *,
        image: int = 224,
        patch: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1)
        encoded = self.norm(self.blocks(tokens + self.positions))
        logits: Tensor = self.head(encoded[:, 0])
        return logits


def vit_b_32() -> Bundle:
    return with_random_weights(VisionTransformer, partial(settle_transformer, std=0.03), structured_images)
