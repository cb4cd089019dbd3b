"""A fusion learned from judged queries, and kept with its index."""

from __future__ import annotations

import json
import os
from typing import Any

from indexer.base import Index
from lexvla.errors import IndexCorruptError, IndexVersionError, InputError, UnsupportedError
from search.fusion import Fusion, fusion_from_dict

__all__ = ["load_fusion", "save_fusion"]

FILE = "fusion.json"
_FORMAT_VERSION = 1


def save_fusion(index: Index, fusion: Fusion, facts: dict[str, Any] | None = None) -> None:
    """Keep a fusion with an index, as the one of queries that name none.

    Args:
        index: Has a directory.
        fusion: Replaces the one that is there.
        facts: JSON values about how it was found, kept beside it.

    Raises:
        OSError: The file cannot be written.
        UnsupportedError: The index has no directory.
    """
    if index.directory is None:
        raise UnsupportedError("an index on a server keeps no fusion; give it with each query")
    data = {"format_version": _FORMAT_VERSION, "fusion": fusion.to_dict(), "facts": facts or {}}
    path = index.directory / FILE
    beside = path.with_name(f"{FILE}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(data, file, indent=2, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load_fusion(index: Index) -> Fusion | None:
    """Return the fusion that is kept with an index, or ``None``.

    Raises:
        IndexCorruptError: The file cannot be read.
        IndexVersionError: A newer program wrote it.
    """
    if index.directory is None:
        return None
    path = index.directory / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, settings = int(data["format_version"]), data["fusion"]
        if version > _FORMAT_VERSION:
            raise IndexVersionError(f"{path}: fusion format {version} is newer than this program")
        return fusion_from_dict(settings)
    except FileNotFoundError:
        return None
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise IndexCorruptError(f"{path}: no readable fusion ({error})") from error
