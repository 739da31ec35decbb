"""Strided convolutions of few channels, which integer kernels are slow at, as dense ones of many.

    conv(q [C, H, W], w [k, k], stride s)  -->  conv(space_to_depth(pad(q, z), s) [s s C, ...], w', stride 1)

w' is w with zeros up to a multiple of s, its s x s phases as channels. Exact: the same products, and zeros.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.fx import Node

from qcompiler.ir import Draft, arguments, spec
from qcompiler.passes.rules.sample import choose, several
from qcompiler.rewrite import Rule

aten = torch.ops.aten
qc = torch.ops.qcompiler
Ints = list[int]

# Where it pays in ONNX Runtime 1.31.1 (docs/ort.md has the table): its kernels take channels by four.
MOST_CHANNELS = 3
LARGEST_STRIDE = 4


def margins(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Rows to add before and behind (or to cut, if negative) so that whole blocks remain for every output."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    blocks = outputs + -(-kernel // stride) - 1
    return padding, stride * blocks - size - padding


def pads_of(q: Any, w: Any, stride: Sequence[int], padding: Sequence[int]) -> Ints:
    """[left, right, top, bottom], as torch writes it."""
    height, width = (
        margins(int(q.shape[axis]), int(w.shape[axis]), stride[0], pad)
        for axis, pad in zip((2, 3), padding, strict=True)
    )
    return [*width, *height]


def phases(w: Tensor, stride: int) -> Tensor:
    """[O, C, k, k] -> [O, s s C, k', k']: tap (a s + i, b s + j) of channel c is tap (a, b) of (i, j, c)."""
    filters, channels, *kernel = w.shape
    taps = [-(-size // stride) for size in kernel]
    padded = F.pad(w, (0, stride * taps[1] - kernel[1], 0, stride * taps[0] - kernel[0]))
    split = padded.reshape(filters, channels, taps[0], stride, taps[1], stride)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(filters, -1, *taps)


# ---------------------------------------------------------------- the law


def strided(q: Tensor, z: Tensor, w: Tensor, stride: Ints, padding: Ints) -> Any:
    """Sums of products of codes, the zero point taken off."""
    return aten.conv2d.default((q.double() - z.double()), w.double(), None, stride, padding)


def dense(q: Tensor, z: Tensor, w: Tensor, stride: Ints, padding: Ints) -> Any:
    blocks = qc.space_to_depth.default(qc.pad_codes.default(q, z, pads_of(q, w, stride, padding)), stride[0])
    return aten.conv2d.default(blocks.double() - z.double(), phases(w, stride[0]).double())


def stem(g: Generator) -> tuple[Any, ...]:
    """Codes of a random image, zero point, weight codes, stride and padding."""
    channels, kernel, stride = choose(g, 1, 2, 3), choose(g, 1, 2, 3, 5, 7), choose(g, 2, 3, 4)
    size = [11, choose(g, 9, 14)]
    q = torch.randint(0, 256, (2, channels, *size), generator=g).to(torch.uint8)
    w = torch.randint(-127, 128, (4, channels, kernel, kernel), generator=g).to(torch.int8)
    padding = [choose(g, 0, kernel // 2), kernel // 2]
    return q, torch.tensor(choose(g, 0, 118, 255)).to(torch.uint8), w, [stride, stride], padding


SPACE_TO_DEPTH = Rule(
    name="space-to-depth", before=strided, after=dense, domain=several(stem, count=20)
)  # law: bit for bit


# ---------------------------------------------------------------- the rewrite


def pays(conv: Node) -> bool:
    """Whether a convolution of codes is one of those, and of sizes that are known."""
    if conv.target is not aten.conv2d.default:
        return False
    given = arguments(conv)
    image, weight = spec(given["input"]), spec(given["weight"])
    if image is None or weight is None or len(image.shape) != 4:
        return False
    stride, sizes = given["stride"], (*image.shape[2:], *weight.shape)
    return (
        all(isinstance(size, int) for size in sizes)
        and given["groups"] == 1
        and list(given["dilation"]) == [1, 1]
        and stride[0] == stride[1]
        and 1 < stride[0] <= LARGEST_STRIDE
        and weight.shape[1] <= MOST_CHANNELS
        and all(is_codes(given[name]) for name in ("input", "weight"))
    )


def is_codes(node: Node) -> bool:
    return node.target is qc.dequantize.default and "int" in str(arguments(node)["format"])


def use_space_to_depth(draft: Draft, conv: Node) -> None:
    """Rewrite one convolution; it keeps its name."""
    given = arguments(conv)
    image, weight = arguments(given["input"]), arguments(given["weight"])
    codes = draft.tensor(weight["q"])
    if codes is None:
        return
    stride = given["stride"][0]
    pads = pads_of(spec(image["q"]), codes, given["stride"], given["padding"])
    padded = draft.call(qc.pad_codes.default, image["q"], image["zero_point"], pads, before=conv)
    blocks = draft.call(qc.space_to_depth.default, padded, stride, before=conv)
    dense_weight = draft.constant(f"{weight['q'].target}.phases", phases(codes, stride), before=conv)
    conv.args = (decoded(draft, conv, blocks, image), decoded(draft, conv, dense_weight, weight),
                 given["bias"], [1, 1], [0, 0], [1, 1], 1)  # fmt: skip
    draft.infer(conv)


def decoded(draft: Draft, conv: Node, codes: Node, like: dict[str, Any]) -> Node:
    """Other codes with the scale and zero point of `like`."""
    rest = [like[name] for name in ("scale", "zero_point", "format", "axis", "block")]
    return draft.call(qc.dequantize.default, codes, *rest, before=conv)
