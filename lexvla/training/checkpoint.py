"""Atomic checkpoints."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lexvla.errors import ModelError

__all__ = ["differences", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state durably and atomically.

    Raises:
        ModelError: It cannot be written, such as on a full disk; an earlier file stays.
    """
    beside = path.with_suffix(".tmp")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        hint = "; is the disk full?" if isinstance(error, RuntimeError) else ""  # torch's says less
        raise ModelError(f"{path}: the checkpoint cannot be written ({error}{hint})") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state; nothing but tensors and plain values is let in.

    Raises:
        ModelError: The file is damaged, or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's advice is to read it without a check
        rule = "it is damaged, or holds something other than tensors and plain values"
        raise ModelError(f"{path}: the checkpoint cannot be read ({rule})") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path}: the checkpoint cannot be read ({error})") from error
    if not isinstance(state, dict) or "recipe" not in state:
        raise ModelError(f"{path}: not a checkpoint of a training run")
    return state


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Describe the settings that differ, with both values."""
    for key in sorted(old.keys() | new.keys()):
        mine, yours = old.get(key), new.get(key)
        if isinstance(mine, dict) and isinstance(yours, dict):
            yield from differences(mine, yours, f"{prefix}{key}.")
        elif mine != yours:
            yield f"{prefix}{key} was {mine!r} and is {yours!r}"
