"""Models of the sizes that GPUs train, and small ones of the same make, on which a CPU runs the same code."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qcompiler.models import bert, decoder, resnet, vit
from qcompiler.models.decoder import Decoder, Shape
from qcompiler.training.finetune.llama import Reader


@dataclass(frozen=True, kw_only=True)
class Large:
    """A model and its batch. layer: the kind of module that checkpointing computes again as a whole."""

    title: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, ...]]
    layer: type[nn.Module]


def text(rows: int, tokens: int, vocabulary: int) -> tuple[Tensor, ...]:
    return torch.randint(vocabulary, (rows, tokens)), torch.ones(rows, tokens, dtype=torch.int64)


def tokens(rows: int, count: int, vocabulary: int) -> tuple[Tensor, ...]:
    return (torch.randint(vocabulary, (rows, count)),)


def images(rows: int, side: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 3, side, side),)


def llama(shape: Shape) -> nn.Module:
    return Reader(Decoder(shape))


# The layers are those of a model of one billion parameters. Its vocabulary is small on purpose: what counts
# are the blocks, and logits of a large one would hide what is kept for them.
BLOCKS = Shape(
    vocabulary=1024, width=2048, hidden=8192, depth=16, heads=16, kv_heads=16, positions=2048, epsilon=1e-6
)
FEW = Shape(vocabulary=64, width=64, hidden=192, depth=2, heads=4, kv_heads=4, positions=32, epsilon=1e-6)

LARGE: Mapping[str, Large] = {
    "bert_large": Large(
        title="BERT-large, 32 x 512 tokens",
        build=partial(bert.Bert, width=1024, depth=24, heads=16, hidden=4096),
        batch=partial(text, 32, 512, bert.VOCABULARY),
        layer=bert.Layer,
    ),
    "vit_b": Large(
        title="ViT-B/16, 256 images of 224 x 224",
        build=partial(vit.VisionTransformer, patch=16),
        batch=partial(images, 256, 224),
        layer=vit.Block,
    ),
    "resnet50": Large(
        title="ResNet-50, 256 images of 224 x 224",
        build=partial(resnet.ResNet, resnet.Bottleneck, (3, 4, 6, 3)),
        batch=partial(images, 256, 224),
        layer=resnet.Bottleneck,
    ),
    "llama_1b": Large(
        title="LLaMA blocks, 1.07 billion parameters, 4 x 2048 tokens",
        build=partial(llama, BLOCKS),
        batch=partial(tokens, 4, BLOCKS.positions, BLOCKS.vocabulary),
        layer=decoder.Layer,
    ),
}

SMALL: Mapping[str, Large] = {
    "bert_large": Large(
        title="BERT of 2 layers, 16 x 32 tokens",
        build=partial(bert.Bert, vocabulary=64, positions=32, width=64, depth=2, heads=4, hidden=256),
        batch=partial(text, 16, 32, 64),
        layer=bert.Layer,
    ),
    "vit_b": Large(
        title="ViT of 2 layers, 16 images of 32 x 32",
        build=partial(
            vit.VisionTransformer, image=32, patch=8, width=64, depth=2, heads=4, hidden=256, classes=10
        ),
        batch=partial(images, 16, 32),
        layer=vit.Block,
    ),
    "resnet50": Large(
        title="ResNet of 4 bottlenecks, 16 images of 64 x 64",
        build=partial(resnet.ResNet, resnet.Bottleneck, (1, 1, 1, 1), classes=10),
        batch=partial(images, 16, 64),
        layer=resnet.Bottleneck,
    ),
    "llama_1b": Large(
        title="LLaMA of 2 blocks, 16 x 32 tokens",
        build=partial(llama, FEW),
        batch=partial(tokens, 16, FEW.positions, FEW.vocabulary),
        layer=decoder.Layer,
    ),
}
