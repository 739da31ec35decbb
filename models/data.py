"""Inputs that look like real ones, from a seed: structured images and Zipf token ids; and real digits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.models.bundle import Inputs

# Detail size -> weight: natural images have most of their power in the coarse scales.
FIELD_WEIGHTS = {4: 1.0, 16: 0.5, 64: 0.25}
# About the range of ImageNet pixels after the usual normalisation (mean 0.45, deviation 0.225).
PIXEL_RANGE = (-2.5, 2.7)
# The held-out digits: a fifth of the 1797, as is usual for this set.
HELD_OUT_DIGITS = 360


def structured_images(count: int, seed: int, *, batch: int = 1, size: int = 224) -> tuple[Inputs, ...]:
    """`count` batches of normalised RGB images: smooth fields of several scales, hard edges, some noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def image() -> Tensor:
        pixels = torch.zeros(batch, 3, size, size)
        for detail, weight in FIELD_WEIGHTS.items():
            field = normal(batch, 3, detail, detail)
            pixels += weight * F.interpolate(field, (size, size), mode="bilinear", align_corners=False)
        patches = (torch.rand(batch, 1, 8, 8, generator=generator) > 0.7).float()
        pixels += F.interpolate(patches, (size, size), mode="nearest") * normal(batch, 3, 1, 1)
        pixels += 0.05 * normal(batch, 3, size, size)
        return pixels.clamp(*PIXEL_RANGE)

    return tuple((image(),) for _ in range(count))


def zipf_tokens(count: int, seed: int, *, length: int, vocabulary: int) -> tuple[Inputs, ...]:
    """`count` pairs (token ids, attention mask) of one sentence each, ids drawn with P(id) ~ 1 / (id + 1).

    Every fourth sentence fills three quarters of the length and is padded with id 0 and mask 0: a mask that
    gets lost on the way shows.
    """

    def sentence(index: int, ids: Tensor) -> Inputs:
        used = length * 3 // 4 if index % 4 == 3 else length
        mask = (torch.arange(length) < used).long()
        return (ids * mask)[None], mask[None]

    drawn = zipf_prompts(count, seed, length=length, vocabulary=vocabulary)
    return tuple(sentence(index, ids[0]) for index, ids in enumerate(drawn))


def zipf_prompts(count: int, seed: int, *, length: int, vocabulary: int) -> tuple[Tensor, ...]:
    """`count` prompts [1, length], ids drawn with P(id) ~ 1 / (id + 1)."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float32)
    return tuple(
        torch.multinomial(frequencies, length, replacement=True, generator=generator)[None]
        for _ in range(count)
    )


class Digits(NamedTuple):
    """Images are [n, 1, 8, 8] in [0, 1]; labels are [n], 0 to 9. No image is in both splits."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The 8x8 handwritten digits of scikit-learn, always split the same way, each digit in proportion."""
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn; install `qcompiler[models]`.") from error

    pixels, digits = datasets.load_digits(return_X_y=True)
    # The source counts 0 to 16 per pixel.
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits, dtype=torch.int64)
    train, test = model_selection.train_test_split(
        range(len(labels)), test_size=HELD_OUT_DIGITS, random_state=0, stratify=digits
    )
    return Digits(images[train], labels[train], images[test], labels[test])
