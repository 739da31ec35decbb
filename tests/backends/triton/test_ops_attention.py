"""Attention over a cache of 8-bit codes on the CPU: its numbers, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.ops import append_kv, decode_attention, quantize_rows
from qcompiler.backends.triton.ops.attention import PARTS, STEP
from qcompiler.errors import InputError, TargetError
from tests.backends.triton.cases.attention import cache, exact


@pytest.mark.parametrize(
    ("kind", "length"),
    [(torch.int8, 1), (torch.float8_e4m3fn, STEP), (torch.int8, PARTS * STEP + 1)],
    ids=str,
)
def test_it_is_attention(kind: torch.dtype, length: int) -> None:
    cached, q = cache(kind, 2, 2, length + 3, 16), torch.randn(2, 4, 16)
    found = decode_attention(q, *cached.all, torch.tensor([length, 2]), 0.2)
    for b, n in enumerate((length, 2)):
        wanted, bound = exact(q[b], cached.of(b), n, 0.2, tensor_cores=False)
        assert ((found[b].double() - wanted).abs() <= bound).all() and wanted.abs().max() > 1e3 * bound.max()


def test_what_lies_beyond_a_length_and_beside_a_sequence_changes_nothing() -> None:
    cached, q = cache(torch.int8, 3, 2, 200, 16), torch.randn(3, 4, 16)
    lengths = torch.tensor([77, 0, -4], dtype=torch.int32)
    found = decode_attention(q, *cached.all, lengths, 1.0)
    assert not found[1:].any()
    k, s, v, z = (x[:1, :, :77].contiguous() for x in cached.all)
    assert torch.equal(decode_attention(q[:1], k, s, v, z, torch.tensor([99]), 1.0), found[:1])
    cached.s[:, :, 77:], cached.z[1:] = torch.nan, torch.nan
    assert torch.equal(decode_attention(q, *cached.all, lengths, 1.0), found)


def test_tokens_join_one_by_one() -> None:
    """The codes are those of rows quantised at once; a key that is not finite reaches its heads alone."""
    keys, values = torch.randn(2, 2, 3, 40, 16)
    keys[1, 2, 7, 3] = torch.inf
    shape = (2, 3, 40)
    k, v = torch.zeros(2, *shape, 16, dtype=torch.int8)
    s, z = torch.zeros(2, *shape)
    for token in range(40):
        append_kv(k, s, v, z, keys[:, :, token], values[:, :, token], torch.full((2,), token))
    for x, codes, scales in ((keys, k, s), (values, v, z)):
        wanted, wanted_scales = quantize_rows(x.reshape(-1, 16), "int8")
        assert torch.equal(codes.view(-1, 16), wanted)
        assert torch.equal(scales.view(-1).nan_to_num(), wanted_scales.nan_to_num())
    found = decode_attention(torch.randn(2, 6, 16), k, s, v, z, torch.tensor([40, 40]), 0.25)
    assert found.isnan().any(2).nonzero().tolist() == [[1, 4], [1, 5]]
    assert found[1, 4:].isnan().all()


def test_a_place_that_the_cache_does_not_have_is_not_written() -> None:
    cached = cache(torch.int8, 2, 1, 5, 16)
    before = [x.clone() for x in cached.all]
    append_kv(*cached.all, torch.ones(2, 1, 16), torch.ones(2, 1, 16), torch.tensor([5, -1]))
    assert all(map(torch.equal, cached.all, before))


# ---------------------------------------------------------------- torch


def operands(B: int = 2) -> tuple[Any, ...]:
    return torch.randn(B, 4, 16), *cache(torch.int8, B, 2, 9, 16).all, torch.full((B,), 8), 0.25


def token(B: int = 2) -> tuple[Any, ...]:
    return (*cache(torch.int8, B, 2, 9, 16).all, *torch.randn(2, B, 2, 16), torch.full((B,), 3))


@pytest.mark.parametrize("op", [decode_attention, append_kv], ids=["decode", "append"])
def test_an_op_says_the_truth_about_itself(op: Any) -> None:
    given = token() if op is append_kv else operands()
    torch.library.opcheck(op, given, test_utils=("test_schema", "test_faketensor"))


def test_a_step_of_decoding_compiles_as_one_graph() -> None:
    def step(q: Tensor, k: Tensor, v: Tensor, kept: list[Tensor], at: Tensor) -> Tensor:
        torch.ops.qcompiler.triton_append_kv(*kept, k, v, at)
        y: Tensor = torch.ops.qcompiler.triton_decode_attention(q, *kept, at + 1, 0.25)
        return y * 2

    cached, q, (k, v) = cache(torch.int8, 2, 2, 9, 16), torch.randn(2, 4, 16), torch.randn(2, 2, 2, 16)
    same = [x.clone() for x in cached.all]
    at = torch.tensor([0, 8])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, [*cached.all], at), step(q, k, v, same, at))
    assert all(map(torch.equal, cached.all, same))


# ---------------------------------------------------------------- refusals

E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.randn(2, 3, 16)}, r"queries torch.float32 \[2, 3, 16\] .* \[2, a multiple of 2, 16\]"),
        ({0: torch.randn(2, 16, 4).mT}, "side by side"),
        ({1: torch.zeros(2, 2, 9, 16)}, "int8 or e4m3 codes"),
        ({3: torch.zeros(2, 2, 9, 16).to(E4M3)}, "keys of torch.int8 on cpu, values of torch.float8_e4m3fn"),
        ({3: torch.zeros(2, 2, 16, 9, dtype=torch.int8).mT}, "a cache with gaps, in another order"),
        ({2: torch.ones(2, 2, 8)}, r"scales of keys torch.float32 \[2, 2, 8\]"),
        ({4: torch.ones(2, 2, 9).half()}, "scales of values torch.float16"),
        ({5: torch.ones(2)}, r"lengths torch.float32 \[2\].* int32 or int64 \[2\]"),
        ({6: float("nan")}, "scores times nan"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[int, Any], sentence: str) -> None:
    given = [*operands()]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=sentence):
        decode_attention(*given)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 2, 0, 16), "2 sequences, 2 heads and 0 tokens of 16"),
        ((2, 2, 9, 24), "heads of 24, because a multiple of 16"),
        ((2, 2, 1, 272), "up to 256 is wanted; pad"),
    ],
)
def test_a_cache_that_no_kernel_reads_is_refused(shape: tuple[int, ...], sentence: str) -> None:
    codes, scales = torch.zeros(shape, dtype=torch.int8), torch.ones(shape[:3])
    with pytest.raises(InputError, match=sentence):
        decode_attention(
            torch.zeros(2, 2, shape[3]), codes, scales, codes, scales, torch.ones(2, dtype=torch.int64), 1.0
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({4: torch.randn(2, 2, 8)}, r"a token's rows torch.float32 \[2, 2, 8\]"),
        ({5: torch.randn(2, 2, 16).half()}, "keys of torch.float32 and values of torch.float16"),
        ({6: torch.ones(3, dtype=torch.int32)}, r"positions torch.int32 \[3\]"),
    ],
)
def test_a_token_that_does_not_fit_is_refused(change: dict[int, Any], sentence: str) -> None:
    given = [*token()]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=sentence):
        append_kv(*given)


def test_e4m3_needs_a_device_that_converts_it() -> None:
    assert chosen("decode_parts", 89, mode="e4m3").mode == "e4m3"
    for kernel in ("decode_parts", "append_kv"):
        with pytest.raises(TargetError, match=f"{kernel} e4m3 on a device of compute capability 8.0"):
            chosen(kernel, 80, mode="e4m3")
