"""Saved activations in a few bits: groups with a minimum and a scale of their own, and masks of one bit."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.numerics.packing import WIDE, join, split

GROUP = 256
ON_CPU, ELSEWHERE = 1 << 17, 1 << 24  # elements together: temporaries stay in a cache, or small

Noise = Tensor | Callable[[int, int], Tensor]
"""Draws from [0, 1), one for each element; or how to make those of elements offset .. offset + count."""


def compress(x: Tensor, bits: int, noise: Noise | None, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Codes of 0 .. B = 2^bits - 1 for the elements of x, in row-major order, by groups.

    m = the largest bfloat16 <= min        s = the smallest bfloat16 with s B >= max - m
    t = (x - m) / s, 0 where s = 0         q = floor(t) + [u < t - floor(t)]; rne(t) without noise

    -> packed uint8 [groups * group * bits / 8], low bits first; bounds bfloat16 [groups, 2], of (m, s).

    0 <= t <= B always, since both bounds are rounded outward, and before they are used: nothing clips, and
    the mean of `decompress` is x, its variance at most s^2 / 4. The last group is filled up with its last
    element. A group with NaN or an infinity, or whose range exceeds bfloat16, comes back without a finite
    element, so that overflow stays visible.

    x is float32, bfloat16 or float16; it is copied only where it is not contiguous. Beside the result this
    takes 3 MiB on a CPU, and draws that a function makes are never there all at once.
    """
    _check(bits, group)
    count, groups = x.numel(), -(-x.numel() // group)
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(f"cannot compress {x.dtype}", fix="use float32, bfloat16 or float16")
    if isinstance(noise, Tensor) and (noise.dtype != torch.float32 or noise.dim() != 1 or len(noise) < count):
        raise InputError(
            f"draws of {noise.dtype} {tuple(noise.shape)}", why=f"{count} of float32 in a row are needed"
        )
    flat = x.detach().reshape(-1)
    packed = torch.empty(groups * group * bits // 8, dtype=torch.uint8, device=x.device)
    bounds = torch.empty(groups, 2, dtype=torch.bfloat16, device=x.device)
    for start, stop in _chunks(groups, group, x.device):
        first, last = start * group, min(stop * group, count)
        values = _filled(flat[first:last].to(torch.float32), group)
        lowest, scale = _outward(values.amin(1, keepdim=True), values.amax(1, keepdim=True), 2**bits - 1)
        t = (values - lowest).div_(scale).nan_to_num_(nan=0.0)  # 0 / 0 where s = 0, and what is not finite
        if noise is None:
            codes = t.round_()
        else:
            draws = noise[first:last] if isinstance(noise, Tensor) else noise(first, last - first)
            codes = t.floor()
            codes += torch.lt(_filled(draws, group), t.sub_(codes), out=t)
        packed[first * bits // 8 : stop * group * bits // 8] = join(_bytes(codes), bits)
        bounds[start:stop] = torch.cat((lowest, scale), 1)
    return packed, bounds


def decompress(
    packed: Tensor,
    bounds: Tensor,
    bits: int,
    count: int,
    group: int = GROUP,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The first `count` elements of what `compress` packed: q s + m in float32, then of `dtype`; [count]."""
    _check(bits, group)
    groups = -(-count // group)
    if packed.shape != (groups * group * bits // 8,) or bounds.shape != (groups, 2):
        raise InputError(
            f"{packed.numel()} bytes and bounds of {tuple(bounds.shape)}",
            why=f"{count} elements of {bits} bits in groups of {group} are {groups} groups",
        )
    values = torch.empty(count, dtype=dtype, device=packed.device)
    for start, stop in _chunks(groups, group, packed.device):
        first, last = start * group, min(stop * group, count)
        codes = split(packed[first * bits // 8 : stop * group * bits // 8], bits)
        lowest, scale = bounds[start:stop, :, None].to(torch.float32).unbind(1)
        restored = codes.view(-1, group).to(torch.float32).mul_(scale).add_(lowest)
        values[first:last] = restored.view(-1)[: last - first]
    return values


def compress_mask(x: Tensor) -> Tensor:
    """One bit for each element, eight to a byte, element 0 in bit 0: whether it is not zero; uint8.

    Lossless for bool, and for tensors that hold nothing but 0 and 1.
    """
    flat = x.detach().reshape(-1)
    packed = torch.empty(-(-flat.numel() // 8), dtype=torch.uint8, device=x.device)
    for start, stop in _chunks(packed.numel(), 8, x.device):
        part = flat[8 * start : 8 * stop]
        marks = (part if part.dtype == torch.bool else part != 0).view(torch.uint8)
        packed[start:stop] = join(torch.nn.functional.pad(marks, (0, -marks.numel() % 8)), 1)  # pad copies
    return packed


def decompress_mask(packed: Tensor, count: int) -> Tensor:
    """The first `count` elements of what `compress_mask` packed; bool [count]."""
    if packed.shape != (-(-count // 8),):
        raise InputError(f"{packed.numel()} bytes are not {count} bits")
    mask = torch.empty(count, dtype=torch.bool, device=packed.device)
    for start, stop in _chunks(packed.numel(), 8, packed.device):
        last = min(8 * stop, count)
        mask[8 * start : last] = split(packed[start:stop], 1)[: last - 8 * start].view(torch.bool)
    return mask


def compressed_bytes(count: int, bits: int, group: int = GROUP) -> int:
    """What `compress` makes of `count` elements, codes and bounds: (group * bits / 8 + 4) bytes a group."""
    _check(bits, group)
    return -(-count // group) * (group * bits // 8 + 4)


def _check(bits: int, group: int) -> None:
    if bits not in WIDE or group < 32 or group % 32:
        raise InputError(
            f"no groups of {group} elements in {bits} bits", fix="use 8, 4, 2 or 1 bits and a multiple of 32"
        )


def _chunks(groups: int, group: int, device: torch.device) -> Iterator[tuple[int, int]]:
    together = max((ON_CPU if device.type == "cpu" else ELSEWHERE) // group, 1)
    return ((start, min(start + together, groups)) for start in range(0, groups, together))


def _filled(values: Tensor, group: int) -> Tensor:
    """(n,)  -->  (ceil(n / group), group), filled up with the last element."""
    missing = -values.numel() % group
    return (torch.cat((values, values[-1:].expand(missing))) if missing else values).view(-1, group)


def _outward(lowest: Tensor, highest: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(m, s), float32 with the values of bfloat16: m <= lowest, and m + s * steps >= highest; NaN stays."""
    lowest, highest = lowest + 0.0, highest + 0.0  # -0 to 0: of zeros, whichever was found first came out
    below = lowest.to(torch.bfloat16)
    below = torch.where(below > lowest, torch.nextafter(below, torch.full_like(below, -torch.inf)), below)
    span = highest - below  # rounded, as t is, and both grow with x: t <= span / s <= steps
    scale = (span / steps).to(torch.bfloat16)
    short = scale.to(torch.float32) * steps < span  # the product of 8 and 8 bits is exact
    scale = torch.where(short, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    return below.to(torch.float32), scale.to(torch.float32)


def _bytes(codes: Tensor) -> Tensor:
    return codes.to(torch.int16).to(torch.uint8).view(-1)  # twice as fast as at once
