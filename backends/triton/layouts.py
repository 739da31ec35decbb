"""How weights of few bits lie in memory for the kernels, and for MatMulNBits of ONNX Runtime.

    codes [N, K] of b bits, in groups of G along K        P = 8 / b codes to a byte        H = G / P

    w4h_g{G}, w2h_g{G}, w8_g{G}    byte j of a group: codes j, j + H, .. j + (P - 1) H of it
    MatMulNBits                    byte j of a group: codes P j, P j + 1, .. P j + P - 1 of it

Low bits come first in both. What is masked out of bytes side by side are thus codes side by side, in halves
or quarters of a group, and no register has to be taken apart. Codes are unsigned; they mean s (u - z), with a
scale s for each group and a zero point z: one for each group, or 2^(b-1) for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.numerics import IntFormat, PerGroup, QuantParams, packing, quantize

ROWS = 64  # of a weight, at a time: what the left operand of a matrix instruction has


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`bits` of a code, and how many of them share a scale: 16 bytes at least, which is one load."""

    bits: int
    group: int

    @property
    def name(self) -> str:
        return f"w{self.bits}{'h' if self.bits < 8 else ''}_g{self.group}"

    @property
    def per_byte(self) -> int:
        return 8 // self.bits

    @property
    def bytes(self) -> int:
        """Of a group."""
        return self.group // self.per_byte

    @property
    def middle(self) -> int:
        """The zero point of a symmetric weight."""
        return 1 << (self.bits - 1)


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(bits=bits, group=group) for bits in (4, 2, 8) for group in (32, 64, 128) if bits * group >= 128
    )
}
SCALES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weight:
    """codes uint8 [N, K b / 8], scales bfloat16 or float16 [N, K / G], zeros uint8 [N, K / G] or None.

    A weight without zeros is symmetric.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    layout: str


def layout_named(name: str) -> Layout:
    if name not in LAYOUTS:
        raise InputError(f'weights in the layout "{name}"', fix=f"use one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def layout_of(params: QuantParams) -> Layout:
    """Where the codes of a format and its groups have a place."""
    format, granularity = params.format, params.granularity
    if isinstance(format, IntFormat) and isinstance(granularity, PerGroup) and granularity.axis == 1:
        found = Layout(bits=format.bits, group=granularity.size)
        if found.name in LAYOUTS:
            return found
    raise InputError(
        f"a weight of {format}, {granularity}",
        why=f"kernels read {', '.join(LAYOUTS)}, with groups along axis 1",
    )


def stored(w: Tensor, params: QuantParams, scales: torch.dtype) -> Weight:
    """A weight [N, K] of floats in an integer format: a signed one is symmetric, an unsigned one has zeros.

    The scales are rounded to their type before anything is divided by them: codes are the nearest with what
    is stored, and not with what was meant.
    """
    layout = layout_of(params)
    if scales not in SCALES:
        raise InputError(f"scales of {scales}", why="kernels read them in 16 bits", fix="use bfloat16")
    rounded = params.scale.to(scales)
    if not bool(((rounded >= torch.finfo(scales).smallest_normal) & rounded.isfinite()).all()):
        raise InputError(
            f"scales from {params.scale.min():.3g} to {params.scale.max():.3g} as {scales}",
            why="they leave its range",
            fix="store them in bfloat16",
        )
    is_signed = isinstance(params.format, IntFormat) and params.format.signed
    codes = quantize(w, replace(params, scale=rounded.float())).to(torch.int16)
    return Weight(
        codes=pack((codes + (layout.middle if is_signed else 0)).to(torch.uint8), layout),
        scales=rounded,
        zeros=None if is_signed else params.zero_point.to(torch.uint8),
        layout=layout.name,
    )


def restored(weight: Weight) -> Tensor:
    """s (u - z), float32 [N, K]."""
    layout = layout_named(weight.layout)
    steps = differences(weight.codes, weight.zeros, layout)
    return (steps * weight.scales.float()[:, :, None]).flatten(1)


def differences(codes: Tensor, zeros: Tensor | None, layout: Layout) -> Tensor:
    """Packed codes  -->  u - z in float32 [N, K / G, G], where each of -255 .. 255 is exact."""
    u = unpack(codes, layout).reshape(len(codes), -1, layout.group).float()
    return u - (layout.middle if zeros is None else zeros[:, :, None].float())


def pack(codes: Tensor, layout: Layout) -> Tensor:
    """Codes uint8 [N, K]  -->  bytes [N, K b / 8], in a layout's order.

    a b c d e f g h  -->  a e b f c g d h  -->  ea fb gc hd        a group of eight in two parts
    """
    check_shape(codes.shape, layout)
    rows, length = codes.shape
    together = codes.reshape(rows, -1, layout.per_byte, layout.bytes).mT
    return packing.pack(together.reshape(rows, length), layout.bits)


def unpack(packed: Tensor, layout: Layout) -> Tensor:
    """The inverse of `pack`."""
    rows, length = len(packed), packed.shape[1] * layout.per_byte
    check_shape((rows, length), layout)
    codes = packing.unpack(packed, layout.bits, length, signed=False)
    return codes.reshape(rows, -1, layout.bytes, layout.per_byte).mT.reshape(rows, length)


def to_matmulnbits(packed: Tensor, layout: Layout) -> Tensor:
    """The same codes as MatMulNBits has them: [N, K / G, G b / 8]; zero points go through `packing.pack`."""
    return packing.pack(unpack(packed, layout), layout.bits).reshape(len(packed), -1, layout.bytes)


def from_matmulnbits(blocks: Tensor, layout: Layout) -> Tensor:
    """The inverse of `to_matmulnbits`."""
    length = blocks.shape[1] * layout.group
    return pack(packing.unpack(blocks.flatten(1), layout.bits, length, signed=False), layout)


def check_shape(shape: Sequence[int], layout: Layout) -> None:
    """InputError for a weight [N, K] that is not made of whole rows of tiles and whole groups."""
    if len(shape) != 2 or 0 in shape or shape[0] % ROWS or shape[1] % layout.group:
        raise InputError(
            f"a weight {[*shape]} in {layout.name}",
            why=f"outputs are taken {ROWS} at a time, and groups of {layout.group} inputs are whole",
            fix="pad the weight with zeros, or keep the layer in float",
        )
