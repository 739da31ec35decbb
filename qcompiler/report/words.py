"""Numbers and names as a reader wants them. What is missing is `–`; nothing here raises."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

MISSING = "–"
SHARES = ("accuracy", "top1", "top5", "agreement", "f1")  # metrics that are a share of the samples


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[int | float]:
    return is_number(value) and math.isfinite(value)


def clean(text: object) -> str:
    """Text that can be printed anywhere: no control character, no half of a surrogate pair."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def called(name: object) -> str:
    """A name or a sentence that may be missing."""
    return MISSING if name is None or name == "" else clean(name)


def shorten(text: object, width: int = 32) -> str:
    """A name cut in its middle: the front says which block, the end which layer."""
    text = clean(text)
    if len(text) <= width:
        return text
    front = (width - 1) // 3
    return f"{text[:front]}…{text[len(text) - (width - 1 - front) :]}"


def cut(sentence: object, width: int) -> str:
    """The beginning of a sentence that is too long."""
    text = clean(sentence)
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def number(value: object, digits: int = 4) -> str:
    if not is_number(value):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e15 else f"{value:.{digits}g}"


def large(value: object) -> str:
    """1234567  -->  1.23 M"""
    if not is_finite(value):
        return MISSING
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def decibel(value: object) -> str:
    if not is_number(value):
        return MISSING
    return f"{value:.1f} dB" if math.isfinite(value) else f"{number(float(value))} dB"


def percent(share: object, digits: int = 2) -> str:
    """0.5  -->  50 %, and 0.99999 is not called 100 %."""
    if not is_finite(share):
        return MISSING
    text = f"{100 * share:.{digits}f}"
    if float(text) == 0 and share > 0:
        return f"{100 * share:.1g} %"
    if text.startswith("100") and share < 1:
        return f"{100 * share:.6g} %"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def times(ratio: object) -> str:
    return f"{ratio:.2f}x" if is_number(ratio) else MISSING


def duration(value: object, unit: str) -> str:
    if not is_number(value):
        return MISSING
    return f"{value:.3g} {unit}" if abs(value) < 1000 else f"{value:,.0f} {unit}"


def metric(name: str, value: object) -> str:
    if name.endswith("_db"):
        return decibel(value)
    return percent(value) if name in SHARES else number(value)


def plural(count: int, one: str, many: str | None = None) -> str:
    """3, "node"  -->  3 nodes"""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def some(names: Iterable[object], most: int, width: int = 40) -> str:
    """The first few names, and how many more there are."""
    texts = [shorten(called(name), width) for name in names]
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def flatten(value: object, path: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows: {"a": {"b": [1, 2]}}  -->  [("a.b", "1, 2")]"""
    if isinstance(value, Mapping):
        before = f"{path}." if path else ""
        rows = [row for key, inner in value.items() for row in flatten(inner, f"{before}{key}")]
        return rows or [(path, MISSING)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(inner, Mapping) for inner in value):
            return [row for i, inner in enumerate(value) for row in flatten(inner, f"{path}[{i}]")]
        return [(path, ", ".join(scalar(inner) for inner in value) or MISSING)]
    return [(path, scalar(value))]


def scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return called(value)
