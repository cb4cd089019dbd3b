"""Tell an index that a folder of its sources has moved."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from lexvla.errors import InputError
from lexvla_indexer.base import Index
from lexvla_indexer.fingerprint import source_of
from lexvla_indexer.pipeline import take_writer_lock
from lexvla_indexer.roots import Roots

__all__ = ["relocate"]

_TRIED = 1000  # documents of each source whose files are looked for


def relocate(index: Index, new: str | Path, old: str | Path | None = None) -> str:
    """Note where a folder lies now, with all sources in it. Nothing is encoded.

    ``old`` is the folder as the index knows it; it may be left out if there is only one with
    documents. A folder that lost its documents to another, such as the old place of a folder that
    was moved and then indexed again, is forgotten. Returns the folder as the index knew it.

    Raises:
        IndexLockedError: Another writer has the index.
        InputError: The new folder does not exist, has none of the files that the index knows, or
            belongs to another source; or it is unclear which folder is meant.
    """
    take_writer_lock(index)
    roots, root = Roots(index), os.path.realpath(new)
    if not Path(root).is_dir():
        raise InputError(str(new), "there is no such folder")
    if len({place.root for place in roots.values()}) > 1:
        used = {source_of(fingerprint) for _, fingerprint in index.fingerprinted()}
        roots.keep(used & roots.keys() or roots.keys())
    was = _meant(roots, None if old is None else os.fspath(old), index)
    for key, place in roots.items():
        if place.root != was:
            continue
        found = [name for name, _ in islice(index.fingerprinted(f"{key}:"), _TRIED)]
        uris = [document.uri for document in index.documents(found) if document.uri]
        if uris and not any(Path(root, place.path_of(uri)).exists() for uri in uris):
            rule = f"has none of the files of {place.path}, such as {uris[0]}"
            raise InputError(str(new), rule)
    roots.move(was, root)
    return was


def _meant(roots: Roots, old: str | None, index: Index) -> str:
    known = sorted({place.root for place in roots.values()})
    if not known:
        raise InputError(str(index), "was not made from files, so there is nothing to relocate")
    if old is None:
        if len(known) > 1:
            rule = "has sources in several folders; name the one that moved (--old)"
            raise InputError(str(index), f"{rule}: {', '.join(known)}")
        return known[0]
    for name in (old, os.path.realpath(old)):
        if name in known:
            return name
    raise InputError(old, f"is not a folder of this index; its folders are: {', '.join(known)}")
