"""The output folder of a run: one run at a time writes it, and no run is lost to another."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lexvla.errors import InputError, ModelError
from lexvla.training.checkpoint import load_checkpoint

__all__ = ["CHECKPOINT", "claimed", "keep_unfinished"]

CHECKPOINT = "checkpoint.pt"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and name it in OS errors that name no file.

    Raises:
        InputError: Another run writes it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(str(folder), "another run is writing to this folder") from error
        yield
    except OSError as error:  # that of a full disk has no name
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
    finally:
        os.close(handle)


def keep_unfinished(folder: Path) -> None:
    """Refuse to start anew where a run stopped before its end.

    Raises:
        InputError: The folder has a checkpoint of such a run.
    """
    path = folder / CHECKPOINT
    try:
        state = load_checkpoint(path)
    except ModelError:  # there is none, or nothing can be continued from it
        return
    taken, steps = state["step"], state["recipe"]["train"]["steps"]
    if taken < steps:
        rule = f"holds a run that stopped after {taken} of {steps} steps"
        raise InputError(str(path), f"{rule}: continue it with --resume, or delete it")
