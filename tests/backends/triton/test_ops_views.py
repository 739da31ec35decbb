"""Views that begin, or have rows that begin, within a load: copied or refused before a kernel sees them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.layouts import stored
from qcompiler.backends.triton.ops.alignment import even, is_even, lies_askew
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.errors import InputError
from qcompiler.numerics import PerGroup, params_from_range, parse_format, reduce_range
from qcompiler.numerics.philox import noise_key

OPS, KERNELS = "qcompiler.backends.triton.ops.", "qcompiler.backends.triton.kernels."
# Not by attributes: the package has functions of the same names.
(
    accumulate, attention, blocks, hadamard, known, linear, norm, onward, quantize, quantize_both, storage,
    weight_only,
) = MODULES = [
    import_module(f"{OPS}{name}")
    for name in ("accumulate", "attention", "blocks", "hadamard", "known", "linear", "norm", "onward",
                 "quantize", "quantize_both", "storage", "weight_only")
]  # fmt: skip


def shifted(x: Tensor) -> Tensor:
    """The same numbers, one element behind where they should begin."""
    held = x.new_empty(x.numel() + 1)
    held[1:] = x.flatten()
    return held[1:].view(x.shape)


def pitched(x: Tensor) -> Tensor:
    """The same numbers, with rows one element apart."""
    held = x.new_empty((*x.shape[:-1], x.shape[-1] + 1))
    held[..., :-1] = x
    return held[..., :-1]


# ---------------------------------------------------------------- the rule


def test_what_lies_evenly_is_left_where_it_is() -> None:
    x = torch.randn(6, 64)
    for held in (x, x[2:], x[:, 16:32], x[:, :20], x[4], torch.randn(5, 70), torch.randn(5, 3, 80), x[:0]):
        assert is_even(held) and even(held) is held
    assert even(None) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int8])
@pytest.mark.parametrize("view", [shifted, pitched])
def test_what_lies_otherwise_is_copied(dtype: torch.dtype, view: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(6 * 64).view(6, 64).to(dtype)
    found = view(x)
    assert not is_even(found) and lies_askew(found)
    assert is_even(even(found)) and torch.equal(even(found), x)


def test_rows_of_uneven_length_are_no_views() -> None:
    """A tensor of its own has them as well; a column that is turned has a pitch of 1, which is a view's."""
    assert is_even(torch.randn(5, 70)[1:3]) is False, "it begins within a load"
    assert is_even(torch.randn(5, 72)[2:]) and is_even(torch.randn(5, 72)[:, :70])
    assert not is_even(torch.randn(64, 1).t()) and is_even(even(torch.randn(64, 1).t()))


# ---------------------------------------------------------------- what kernels are given

STUBS = ("attention", "blocks", "cache", "draws", "fp8_matmul", "hadamard", "int8_matmul", "known",
         "launching", "masks", "norm", "quantize", "quantize_both", "storage", "weight_only")  # fmt: skip


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every tensor that a kernel would be launched with, on a device that is not here."""
    seen = list[Tensor]()

    def launch(*given: Any, **more: Any) -> None:
        seen.extend(x for x in (*given, *more.values()) if isinstance(x, Tensor))

    for name in STUBS:
        made = ModuleType(f"{KERNELS}{name}")
        for member in ("launch", "launch_product", "launch_store", "launch_recall"):
            setattr(made, member, launch)
        for kernel in ("int8_matmul", "fp8_matmul", "fp8_block_matmul"):
            setattr(made, kernel, type(kernel, (), {}))
        monkeypatch.setitem(sys.modules, f"{KERNELS}{name}", made)
    for module in MODULES:
        if hasattr(module, "capability"):
            monkeypatch.setattr(module, "capability", lambda device: 90)
        if hasattr(module, "scheduled"):
            monkeypatch.setattr(module, "scheduled", lambda problem, device, default: default)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    return seen


@dataclass(frozen=True)
class Launch:
    """An op on a device: what it is called with, by name, and of these which may lie anywhere."""

    on_cuda: Callable[..., Any]
    given: dict[str, Any]
    anywhere: tuple[str, ...]


def every() -> dict[str, Launch]:
    M, N, K, half = 8, 64, 128, torch.bfloat16
    x, residual, bias = torch.randn(M, K).to(half), torch.randn(M, K).to(half), torch.randn(N)
    (a, s), (b, t) = quantize_rows(torch.randn(M, K), "int8"), quantize_rows(torch.randn(N, K), "int8")
    beside, out = torch.randn(M, N), torch.zeros(M, N)
    groups, w = PerGroup(axis=1, size=64), torch.randn(N, K) / 16
    params = params_from_range(*reduce_range(w, groups), parse_format("uint4"), groups, scheme="asymmetric")
    kept = stored(w, params, half)
    key = noise_key(1, 2, 3)
    cache = {"k_codes": torch.zeros(2, 2, 64, 64, dtype=torch.int8), "k_scales": torch.ones(2, 2, 64)}
    cache |= {name.replace("k", "v", 1): made.clone() for name, made in cache.items()}
    token, numbers = torch.randn(2, 2, 64).to(half), torch.ones(2, dtype=torch.int64)
    codes = {"a": a, "a_scale": s, "b": b, "b_scale": t}
    e4m3 = codes | {name: codes[name].to(torch.float8_e4m3fn) for name in "ab"}
    product = {"bias": bias, "residual": beside, "activation": "none", "dtype": torch.float32}
    free = ("a_scale", "b_scale", "bias", "residual")
    held = {"packed": torch.zeros(128, dtype=torch.uint8), "bounds": torch.zeros(1, 2, dtype=half)}
    shape: dict[str, Any] = {"shape": [256], "stride": [1], "dtype": half}
    return {
        "quantize_rows": Launch(quantize.on_cuda, {"x": x, "format": "int8"}, ("x",)),
        "quantize_both": Launch(
            quantize_both.on_cuda, {"x": x, "format": "int8", "key": key, "tensor": 1}, ("x", "key")
        ),
        "norm_quantize": Launch(
            norm.on_cuda,
            {"x": x, "residual": residual, "weight": x[0].clone(), "bias": x[1].clone(),
             "scale": torch.ones(1), "norm": "layer", "eps": 1e-6, "format": "int8", "floats": True},
            ("x", "residual", "weight", "bias", "scale"),
        ),
        "hadamard_quantize": Launch(hadamard.on_cuda, {"x": x, "block": 32, "format": "int8"}, ("x",)),
        "int8_linear": Launch(linear.int8_on_cuda, codes | product, free),
        "fp8_linear": Launch(linear.fp8_on_cuda, e4m3 | product | {"accumulation": "fast"}, free),
        "quantize_blocks": Launch(blocks.quantize_on_cuda, {"x": x}, ("x",)),
        "fp8_block_linear": Launch(
            blocks.on_cuda,
            product
            | {"a": e4m3["a"], "a_scale": torch.ones(1, M), "b": e4m3["b"], "b_scale": torch.ones(1, 1)},
            free,
        ),
        "accumulate": Launch(
            accumulate.on_cuda, {"out": out, **codes, "accumulation": "fast"}, ("a_scale", "b_scale")
        ),
        "linear_codes": Launch(
            onward.codes_on_cuda,
            codes | {name: product[name] for name in ("bias", "residual", "activation")}
            | {"scale": torch.ones(1)},
            (*free, "scale"),
        ),
        "linear_amax": Launch(onward.amax_on_cuda, codes | product, free),
        "quantize_by_amax": Launch(
            known.by_amax_on_cuda, {"x": x, "amax": torch.ones(M), "format": "int8"}, ("x", "amax")
        ),
        "quantize_by_scale": Launch(
            known.by_scale_on_cuda, {"x": x, "scale": torch.ones(1), "format": "int8"}, ("x", "scale")
        ),
        "weight_only_linear": Launch(
            weight_only.on_cuda,
            {"x": x, "codes": kept.codes, "scales": kept.scales, "zeros": kept.zeros, "bias": bias.to(half),
             "residual": beside.to(half), "layout": kept.layout, "gated": False, "activation": "none",
             "dtype": half},
            ("bias", "residual"),
        ),
        "decode_attention": Launch(
            attention.decode_on_cuda, {"q": token, **cache, "lengths": numbers, "scale": 1.0},
            ("q", "lengths"),
        ),
        "append_kv": Launch(
            attention.append_on_cuda, {**cache, "k": token, "v": token, "positions": numbers},
            ("k", "v", "positions"),
        ),
        "store": Launch(storage.stored, {"x": x, "key": key, "tensor": 1, "bits": 4}, ("x", "key")),
        "recall": Launch(storage.recalled, {**held, "bits": 4, **shape}, ("packed", "bounds")),
        "store_mask": Launch(storage.masked, {"x": x > 0}, ("x",)),
        "recall_mask": Launch(
            storage.unmasked, {"packed": held["packed"][:32].clone(), **shape}, ("packed",)
        ),
        "draws": Launch(storage.drawn, {"key": key, "count": 5, "tensor": 1, "purpose": 1}, ("key",)),
    }  # fmt: skip


EVERY = every()
PLACES = [(name, given) for name, launch in EVERY.items() for given in launch.anywhere]


@pytest.mark.parametrize(("name", "given"), PLACES)
def test_kernels_are_given_what_lies_evenly(launches: list[Tensor], name: str, given: str) -> None:
    launch = EVERY[name]
    x = launch.given[given]
    for view in (shifted, *([pitched] if x.dim() > 1 else [])):
        launches.clear()
        launch.on_cuda(**launch.given | {given: view(x)})
        assert launches and all(is_even(found) for found in launches)
        alike = [found for found in launches if (found.dtype, found.numel()) == (x.dtype, x.numel())]
        assert any(torch.equal(found.flatten(), x.flatten()) for found in alike)


REFUSED = [
    (name, given)
    for name, launch in EVERY.items()
    for given, x in launch.given.items()
    if isinstance(x, Tensor) and given not in launch.anywhere and given != "out"
]


@pytest.mark.parametrize(("name", "given"), REFUSED)
def test_codes_weights_and_caches_are_refused(launches: list[Tensor], name: str, given: str) -> None:
    launch = EVERY[name]
    with pytest.raises(InputError):
        launch.on_cuda(**launch.given | {given: shifted(launch.given[given])})
    assert launches == []


def test_what_is_added_to_in_place_may_lie_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed elsewhere and copied: no kernel writes to it."""
    launch = EVERY["accumulate"]
    monkeypatch.setattr(accumulate, "product", lambda *given, residual, **more: residual + 1)
    out = shifted(torch.zeros(8, 64))
    launch.on_cuda(**launch.given | {"out": out})
    assert torch.equal(out, torch.ones(8, 64))


def test_maxima_of_columns_begin_evenly_behind_those_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lie in one piece of memory, which is filled with zeros at once; 7 rows end within a load."""
    pytest.importorskip("triton")
    module, seen = import_module(f"{KERNELS}quantize_both"), list[Tensor]()

    class Launched:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *given, **more: seen.extend(x for x in given if isinstance(x, Tensor))

    for name in ("amax_both", "quantize_both"):
        monkeypatch.setattr(module, name, Launched())
    x, sizes = torch.randn(7, 64), {"BM": 64, "BK": 64}
    codes, scales, turned, turned_scales = quantize_both.empty(x, "int8")
    module.launch(x, codes, scales, turned, turned_scales, "int8", None, 0, (1, 2), sizes, sizes)
    assert len(seen) == 10 and all(is_even(found) for found in seen)
    rows, columns = seen[1:3]
    assert len(rows) >= 7 and len(columns) == 64 and not (rows.any() or columns.any())
