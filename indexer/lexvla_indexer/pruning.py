"""When a prune looks like a mistake, such as a disk that is not mounted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from lexvla_indexer.path_ids import path_of_id, text_of_path

__all__ = ["doubt"]

_SHARE = 0.1  # of a source's documents: more than this may not go at once
_ANYWAY = " (--prune-anyway deletes them)"
_FEWEST = 10  # but so few may always go


def doubt(root: str | None, gone: Collection[str], kept: Collection[str]) -> str:
    """Return why deleting documents looks like a mistake; empty if it does not.

    ``gone`` and ``kept`` are the ids of a source's documents that it no longer lists, and of what
    it lists. In a folder, ``root``, ids are those of `id_of_path`, and a folder that had documents
    and has no files now is doubtful too.
    """
    if not gone:
        return ""
    total = len(gone) + len(kept)
    counts = f"{len(gone):,} of {total:,} documents are gone"
    if root is not None:
        emptied = _emptied(Path(root), gone, kept)
        if emptied:
            name, count = emptied.most_common(1)[0]
            folder = text_of_path(Path(root, path_of_id(name)))
            return f"{counts}, {count:,} of them from {folder!r}, which has no files now{_ANYWAY}"
    if len(gone) < _FEWEST or len(gone) <= _SHARE * total:
        return ""
    if root is None:
        return counts + _ANYWAY
    shared = os.path.commonpath([Path(name).parent for name in gone])
    folder = text_of_path(Path(root, path_of_id(shared)))
    return f"{counts}, all of them from {folder!r}{_ANYWAY}"


def _emptied(root: Path, gone: Iterable[str], kept: Iterable[str]) -> Counter[str]:
    """Count the documents that are gone from each folder that is there and has no files."""
    alive = {str(parent) for name in kept for parent in Path(name).parents}
    lost: Counter[str] = Counter()
    for name in gone:
        above = [str(parent) for parent in reversed(Path(name).parents)]
        dead = next((parent for parent in above if parent not in alive), None)
        if dead is not None:
            lost[dead] += 1
    return Counter({name: n for name, n in lost.items() if _has_no_files(root / path_of_id(name))})


def _has_no_files(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return not any(not name.startswith(".") for _, _, names in os.walk(folder) for name in names)
