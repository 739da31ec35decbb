"""Codes narrower than a byte, several to a byte."""

import torch
from torch import Tensor

from qcompiler.errors import InputError

# bits: an integer as wide as the codes of one byte of result, each in a byte of its own; and the shifts that
# bring them together, each with the mask of what is then in place (the first byte of a word is its lowest)
WIDE = {
    8: (torch.uint8, ()),
    4: (torch.int16, ((4, 0x0F0F),)),
    2: (torch.int32, ((6, 0x03030303), (12, 0x000F000F))),
    1: (torch.int64, ((7, 0x0101010101010101), (14, 0x0003000300030003), (28, 0x0000000F0000000F))),
}


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last axis, low bits first (the order of ONNX); the tail is filled with zeros.

    (..., n) codes  -->  (..., ceil(n * bits / 8)) uint8, code i of a byte in bits [bits*i, bits*(i+1))

    Signed codes are two's complement in their field.
    """
    per_byte = _per_byte(bits)
    lowest, highest = (int(end) for end in codes.aminmax()) if codes.numel() else (0, 0)
    if lowest < -(2 ** (bits - 1)) or highest >= 2 ** (bits if lowest >= 0 else bits - 1):
        raise InputError(f"codes from {lowest} to {highest} do not fit in {bits} bits")
    fields = codes.to(torch.int32).bitwise_and((1 << bits) - 1).to(torch.uint8)
    fields = torch.nn.functional.pad(fields, (0, -codes.shape[-1] % per_byte))
    return join(fields.flatten(), bits).reshape(*codes.shape[:-1], fields.shape[-1] // per_byte)


def unpack(packed: Tensor, bits: int, length: int, *, signed: bool) -> Tensor:
    """The first `length` codes of each packed row, int8 if signed and uint8 if not.

    unpack(pack(codes, bits), bits, codes.shape[-1], signed=...) = codes
    """
    per_byte = _per_byte(bits)
    if packed.shape[-1] != -(-length // per_byte):
        raise InputError(f"{packed.shape[-1]} bytes are not {length} codes of {bits} bits")
    fields = split(packed.flatten(), bits).reshape(*packed.shape[:-1], packed.shape[-1] * per_byte)
    codes = fields.narrow(-1, 0, length)
    if not signed:
        return codes
    sign = 1 << (bits - 1)
    return ((codes ^ sign).to(torch.int16) - sign).to(torch.int8)


def join(fields: Tensor, bits: int) -> Tensor:
    """Pack a flat uint8 tensor of codes below 2^bits: no check, no copy at 8 bits.

    2 bits:  000000dd 000000cc 000000bb 000000aa  -->  ddccbbaa        (first element right)

    Neighbours are brought together first, then pairs of them: the lowest byte of each word is the result.
    The codes fill whole words, and begin at one in their storage.
    """
    wide, shifts = WIDE[bits]
    words = fields.view(wide)
    for shift, _ in shifts:
        words = words | (words >> shift)
    return words.to(torch.uint8)


def split(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `join`: a flat uint8 tensor of 8 / bits codes for every byte."""
    wide, shifts = WIDE[bits]
    words = packed.to(wide)
    for shift, mask in reversed(shifts):
        words = (words | (words << shift)) & mask
    return words.view(torch.uint8)


def _per_byte(bits: int) -> int:
    if bits not in WIDE:
        raise InputError(f"cannot pack codes of {bits} bits", why="a byte must hold a whole number of them")
    return 8 // bits
