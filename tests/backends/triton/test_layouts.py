"""Weights of few bits in memory: where each code lies, and that nothing is lost on the way."""

from __future__ import annotations

import pytest
import torch

from qcompiler.backends.triton.layouts import (
    LAYOUTS,
    check_shape,
    from_matmulnbits,
    layout_named,
    pack,
    restored,
    stored,
    to_matmulnbits,
    unpack,
)
from qcompiler.errors import InputError
from qcompiler.numerics import (
    PerGroup,
    QuantParams,
    Scheme,
    dequantize,
    packing,
    params_from_range,
    parse_format,
    quantize,
    reduce_range,
)


def params(w: torch.Tensor, format: str, group: int) -> QuantParams:
    granularity = PerGroup(axis=1, size=group)
    scheme: Scheme = "asymmetric" if format.startswith("u") else "symmetric"
    return params_from_range(*reduce_range(w, granularity), parse_format(format), granularity, scheme=scheme)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_byte_holds_codes_that_lie_parts_apart(name: str) -> None:
    layout = layout_named(name)
    codes = torch.randint(0, 1 << layout.bits, (64, 2 * layout.group), dtype=torch.uint8)
    packed = pack(codes, layout)
    H = layout.group * layout.bits // 8
    for group in (0, 1):
        for j in (0, 1, H - 1):
            byte = int(packed[5, group * H + j])
            found = [byte >> (i * layout.bits) & ((1 << layout.bits) - 1) for i in range(layout.per_byte)]
            assert found == codes[5, group * layout.group + j :: H][: layout.per_byte].tolist()
    assert torch.equal(unpack(packed, layout), codes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_matmulnbits_has_the_same_codes_in_order(name: str) -> None:
    layout = layout_named(name)
    codes = torch.randint(0, 1 << layout.bits, (64, 3 * layout.group), dtype=torch.uint8)
    blocks = to_matmulnbits(pack(codes, layout), layout)
    assert blocks.shape == (64, 3, layout.group * layout.bits // 8)
    assert torch.equal(packing.unpack(blocks.flatten(1), layout.bits, codes.shape[1], signed=False), codes)
    assert torch.equal(from_matmulnbits(blocks, layout), pack(codes, layout))


def test_bytes_of_one_group() -> None:
    codes = (torch.arange(32, dtype=torch.uint8) % 16).expand(64, 32)
    packed = pack(codes, layout_named("w4h_g32"))
    assert packed[0].tolist() == [17 * i for i in range(16)]  # i and 16 + i, which is i again
    blocks = to_matmulnbits(packed, layout_named("w4h_g32"))
    assert blocks[0, 0, :3].tolist() == [0x10, 0x32, 0x54]


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", ["int4", "uint4", "int2", "uint2", "int8", "uint8"])
def test_a_stored_weight_is_quantized_with_what_is_stored(format: str, scales: torch.dtype) -> None:
    w = torch.randn(64, 192) + 0.3
    wanted = params(w, format, 64)
    weight = stored(w, wanted, scales)
    assert torch.equal(weight.scales, wanted.scale.to(scales))
    assert (weight.zeros is None) == (not format.startswith("u"))
    rounded = QuantParams(
        scale=weight.scales.float(), zero_point=wanted.zero_point, format=wanted.format,
        granularity=wanted.granularity,
    )  # fmt: skip
    assert torch.equal(restored(weight), dequantize(quantize(w, rounded), rounded))


def test_a_weight_of_zeros_is_zeros() -> None:
    for format in ("int4", "uint4"):
        w = torch.zeros(64, 32)
        assert not restored(stored(w, params(w, format, 32), torch.float16)).any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match='layout "w4onnx_g128"; use one of w4h_g32, w4h_g64'):
        layout_named("w4onnx_g128")
    with pytest.raises(InputError, match=r"a weight \[96, 256\] in w4h_g128, because outputs are taken 64"):
        check_shape((96, 256), layout_named("w4h_g128"))
    with pytest.raises(InputError, match="groups of 128 inputs are whole; pad"):
        check_shape((64, 192), layout_named("w4h_g128"))
    w = torch.randn(64, 64)
    with pytest.raises(InputError, match=r"of int3\(restricted\), per-group\(axis=1, size=32\)"):
        stored(w, params(w, "int3", 32), torch.float16)
    with pytest.raises(InputError, match=r"of int2\(restricted\), per-group\(axis=1, size=32\)"):
        stored(w, params(w, "int2", 32), torch.float16)
    with pytest.raises(InputError, match=r"scales of torch\.float32, because kernels read them in 16 bits"):
        stored(w, params(w, "int4", 32), torch.float32)
    with pytest.raises(InputError, match="leave its range; store them in bfloat16"):
        stored(w * 1e-6, params(w * 1e-6, "int4", 32), torch.float16)
