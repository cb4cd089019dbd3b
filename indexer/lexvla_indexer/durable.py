"""Files that reach the disk whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["NEW", "fsync", "naming", "publish", "replacing", "total_bytes", "writing"]

NEW = ".new"  # suffix of what is being written


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in OS errors that name none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write; an `OSError` names it."""
    with naming(path), path.open("wb") as file:
        yield file


def fsync(path: Path) -> None:
    """Force a file, or the entries of a directory, to the disk."""
    with naming(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def publish(new: Path, path: Path) -> None:
    """Move a finished file or directory to its final name, durably."""
    new.replace(path)
    fsync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file then replaces another whole, durably.

    If anything is raised, the other stays as it was, and nothing is left of the new one.
    """
    new = path.with_name(path.name + NEW)
    try:
        yield new
        fsync(new)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    publish(new, path)


def total_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, even while some are being removed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).stat().st_size
    return total
