"""What each character of Python source is: part of a keyword, a name, a string, ...; the tokenizer knows."""

import io
import keyword
import sysconfig
import tokenize
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

KINDS = ("space", "operator", "keyword", "name", "number", "string", "comment")


def labelled(names: Sequence[str], folder: Path | None = None) -> Tensor:
    """Source files of the standard library, [T, 2] of int64: the ASCII code of each character, and its kind.

    A character outside ASCII becomes "?", an absent file is left out.
    """
    where = folder or Path(sysconfig.get_paths()["stdlib"])
    paths = [path for name in names if (path := where / f"{name}.py").is_file()]
    if not paths:
        raise FileNotFoundError(f"None of the expected source files is in {where}.")
    return torch.cat([pairs(path.read_text(encoding="utf-8")) for path in paths])


def pairs(source: str) -> Tensor:
    codes = torch.frombuffer(bytearray(source.encode("ascii", "replace")), dtype=torch.uint8).long()
    return torch.stack([codes, kinds(source)], -1)


def kinds(source: str) -> Tensor:
    """The position in KINDS of each character's kind, [T]."""
    starts = [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]
    found = bytearray(len(source))
    for token in tokenize.generate_tokens(io.StringIO(source, newline="").readline):
        (row, column), (last_row, last_column) = token.start, token.end
        if token.string.strip():  # indents and ends of lines are space
            start, end = starts[row - 1] + column, starts[last_row - 1] + last_column
            found[start:end] = bytes([KINDS.index(kind(token))]) * (end - start)
    return torch.frombuffer(found, dtype=torch.uint8).long()


def kind(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if token.type in (tokenize.NUMBER, tokenize.COMMENT):
        return tokenize.tok_name[token.type].lower()
    # From Python 3.12 on an f-string is several tokens.
    return "string" if tokenize.tok_name[token.type].startswith(("STRING", "FSTRING")) else "operator"
