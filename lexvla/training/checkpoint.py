"""Checkpoints that are whole or not there."""

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
    """Write a state beside its place, make it durable, and move it there in one step.

    Raises:
        ModelError: It cannot be written, such as on a full disk; what stood there still does.
    """
    beside = path.with_suffix(".tmp")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        beside.unlink(missing_ok=True)
        raise ModelError(f"{path}: the checkpoint cannot be written ({error})") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state; only tensors and plain values are let in.

    Raises:
        ModelError: The file is damaged, or is no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: no readable checkpoint ({error})") from error
    if not isinstance(state, dict) or "recipe" not in state:
        raise ModelError(f"{path}: no checkpoint of a training run")
    return state


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Say which settings differ, with both values."""
    for key in sorted(old.keys() | new.keys()):
        mine, yours = old.get(key), new.get(key)
        if isinstance(mine, dict) and isinstance(yours, dict):
            yield from differences(mine, yours, f"{prefix}{key}.")
        elif mine != yours:
            yield f"{prefix}{key} was {mine!r} and is {yours!r}"
