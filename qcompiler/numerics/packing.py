"""Codes narrower than a byte, several to a byte."""

import torch
from torch import Tensor

from qcompiler.errors import InputError


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last axis, low bits first (the order of ONNX); the tail is filled with zeros.

    (..., n) codes  -->  (..., ceil(n * bits / 8)) uint8, code i of a byte in bits [bits*i, bits*(i+1))

    Signed codes are two's complement in their field.
    """
    per_byte = _per_byte(bits)
    lowest, highest = (int(end) for end in codes.aminmax()) if codes.numel() else (0, 0)
    if lowest < -(2 ** (bits - 1)) or highest >= 2 ** (bits if lowest >= 0 else bits - 1):
        raise InputError(f"codes from {lowest} to {highest} do not fit in {bits} bits")
    fields = codes.to(torch.int32) & ((1 << bits) - 1)
    fields = torch.nn.functional.pad(fields, (0, -codes.shape[-1] % per_byte))
    fields = fields.reshape(*codes.shape[:-1], -(-codes.shape[-1] // per_byte), per_byte)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
    return (fields << shifts).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, length: int, *, signed: bool) -> Tensor:
    """The first `length` codes of each packed row, int8 if signed and uint8 if not.

    unpack(pack(codes, bits), bits, codes.shape[-1], signed=...) = codes
    """
    per_byte = _per_byte(bits)
    if packed.shape[-1] != -(-length // per_byte):
        raise InputError(f"{packed.shape[-1]} bytes are not {length} codes of {bits} bits")
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    fields = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    codes = fields.flatten(-2).narrow(-1, 0, length)
    if not signed:
        return codes.to(torch.uint8)
    sign = 1 << (bits - 1)
    return ((codes ^ sign) - sign).to(torch.int8)


def _per_byte(bits: int) -> int:
    if bits not in (1, 2, 4, 8):
        raise InputError(f"cannot pack codes of {bits} bits", why="a byte must hold a whole number of them")
    return 8 // bits
