"""Weights in a file: an ordinary state_dict, and loading it executes nothing.

model.safetensors    safetensors.torch.load_file
model.pt             torch.load(weights_only=True)
"""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qcompiler.artifact import check_writable_file
from qcompiler.errors import ArtifactError, InputError
from qcompiler.ir.failure import first_line

READERS: Mapping[str, Callable[[Path], Any]] = {
    ".safetensors": load_file,
    ".pt": lambda path: torch.load(path, weights_only=True, map_location="cpu"),
}


def check_checkpoint(path: Path) -> None:
    """Refuse early what could not be written at the end."""
    check_writable_file(path)
    if path.suffix not in READERS:
        raise ArtifactError(
            f"'{path}' is no name for a checkpoint",
            why="its ending says how it is written",
            fix=f"write '{path.with_suffix('.safetensors')}', or .pt for torch.load",
        )
    try_to_write(path)


def try_to_write(path: Path) -> None:
    """Make a file beside it and remove it: some folders cannot be written to, whatever their rights say."""
    draft = draft_of(path)
    try:
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def unwritable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"cannot write '{path}'", why=first_line(error), fix="make room, or name a file in another folder"
    )


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state_dict as a whole or not at all; tied weights stand under each of their names."""
    check_checkpoint(path)
    state = {
        name: value.detach().cpu() for name, value in module.state_dict().items() if isinstance(value, Tensor)
    }
    draft = draft_of(path)
    try:
        if path.suffix == ".pt":
            torch.save(state, draft)
        else:
            save_file({name: value.clone().contiguous() for name, value in state.items()}, draft)
            draft.chmod(0o644)  # it makes files that only their owner reads
        os.replace(draft, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer has the second
        raise unwritable(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def check_weights(path: Path) -> None:
    """Refuse early what could not be read as weights."""
    if not path.is_file():
        raise ArtifactError(
            f"there is no file '{path}'", why="weights are read from it", fix="check the path"
        )
    if path.suffix not in READERS:
        raise ArtifactError(
            f"'{path}' is no checkpoint", fix=f"give a file that ends in {' or '.join(READERS)}"
        )


def load_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of a file. Raises ArtifactError for a file that holds none, InputError for
    those of another model."""
    check_weights(path)
    try:
        state = READERS[path.suffix](path)
    except Exception as error:  # each format has its own
        raise ArtifactError(
            f"'{path}' cannot be read", why=first_line(error), fix="save the weights again"
        ) from error
    try:
        module.load_state_dict(state)
    except Exception as error:
        raise InputError(
            f"the weights of '{path}' are not those of this {type(module).__name__}",
            why=" ".join(str(error).split())[:300],
            fix="give those of the same model",
        ) from error
