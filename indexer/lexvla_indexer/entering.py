"""What a source is to an index: new, known, moved, a part of a known one, or the whole of some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from lexvla_indexer.base import Index
from lexvla_indexer.document import Document
from lexvla_indexer.fingerprint import content_of, hash_of_content
from lexvla_indexer.path_ids import id_of_path, path_of_id, text_of_path
from lexvla_indexer.roots import Roots, SourcePlace

__all__ = ["Entered", "enter"]

_TRIED = 100  # documents of a folder that is gone, to find where it lies now
_CHUNK = 1024  # documents to store again at once


@dataclass(frozen=True)
class Entered:
    """Say which source of an index a place is, or a part of which.

    Attributes:
        key: The source's key in the index.
        root: The source's own folder.
        prefix: What the source's ids start with, besides the path under its folder.
        below: The path from there, as `id_of_path` writes it, with a slash at its end; empty if
            the place is the whole source.
        taken: What else ids in this index start with, by the folder whose ids these are.
        absorbed: The folders that were sources of their own, and are parts of this one now.
        moved_from: Where the source lay until now, if it moved.
    """

    key: str
    root: str
    prefix: str = ""
    below: str = ""
    taken: tuple[tuple[str, str], ...] = ()
    absorbed: tuple[str, ...] = ()
    moved_from: str = ""

    def named(self, document: Document) -> Document:
        """Return a document of the place with the id, uri and key that it has in the index."""
        _, _, rest = document.fingerprint.partition(":")
        return replace(
            document,
            id=self.prefix + self.below + document.id,
            uri=self.below + document.uri if document.uri else "",
            fingerprint=f"{self.key}:{rest}" if rest else "",
        )

    def refusal(self, name: str) -> str:
        """Return why an item of a folder may not have an id in the index; empty if it may."""
        for start, other in self.taken:
            if name.startswith(start):
                rule = f"the ids that start with {start!r} are those of {other}"
                if Path(other).is_dir():
                    return f"{rule}; rename this folder"
                here = text_of_path(Path(self.root, path_of_id(start)))
                told = f"lexvla relocate --old {other} --root {here}"
                return f"{rule}, which is not there; if it moved here: {told}"
        return ""


def enter(index: Index, place: SourcePlace, model: str, key: str = "") -> Entered:
    """Return which source of an index a place is; a new one is noted, under ``key`` if given.

    A new folder that has most of the files of one that is gone is that one, moved. A folder inside
    a known one is a part of it, even if it is known too, as after a run that was killed. Known
    folders inside this one become parts of it, and their documents get their new ids; nothing is
    encoded. The index must be this process's to write.
    """
    roots = Roots(index)
    known, moved_from = roots.key_at(place), ""
    if known is None and key not in roots and not place.name:
        moved_from = next(_moved(index, roots, place, model), "")
        if moved_from:
            roots.move(moved_from, place.root)
    if not place.name and key not in roots:
        known = roots.key_around(place)
    known = known or roots.enter(place, key)
    own = roots[known]
    absorbed = tuple(_absorb(index, roots, known)) if not own.name else ()
    below = ""
    if place.root != own.root and Path(place.root).is_relative_to(own.root) and not own.name:
        below = _below(place.root, Path(own.root))
    prefix = roots.prefix(known)
    taken = tuple(
        (start, other.path)
        for other_key, other in roots.items()
        if (start := roots.prefix(other_key)) not in ("", prefix)
    )
    return Entered(known, own.root, prefix, below, taken, absorbed, moved_from)


def _moved(index: Index, roots: Roots, place: SourcePlace, model: str) -> Iterator[str]:
    """Yield the folders that are gone, and most of whose files lie in this place."""
    for key, other in roots.items():
        if other.name or Path(other.root).is_dir():
            continue
        known = dict(islice(index.fingerprinted(f"{key}:"), _TRIED))
        there = 0
        for document in index.documents(list(known)):
            path = Path(place.root, place.path_of(document.uri))
            if path.is_file():
                content = hash_of_content(model, "", path.read_bytes())
                there += content == content_of(document.fingerprint)
        if there > len(known) / 2:
            yield other.root


def _absorb(index: Index, roots: Roots, key: str) -> Iterator[str]:
    """Make the known folders inside a folder parts of it, and yield them.

    One whose new ids would be those of another folder waits until that has its new ids. If that
    keeps them, it stays as it is.
    """
    root = Path(roots[key].root)
    waiting = [
        inner
        for inner, place in roots.items()
        if inner != key and not place.name and Path(place.root).is_relative_to(root)
    ]
    while inner := next((each for each in waiting if not _meets(index, roots, each, key)), ""):
        path = roots[inner].root
        entered = Entered(key, str(root), roots.prefix(key), _below(path, root))
        was = roots.prefix(inner)
        # The longest first: a new id may be the old one of another document, which is longer.
        names = sorted((n for n, _ in index.fingerprinted(f"{inner}:")), key=len, reverse=True)
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            documents, encoding = index.fetch(chunk)
            index.delete(chunk)
            plain = (replace(each, id=each.id.removeprefix(was)) for each in documents)
            index.add([entered.named(each) for each in plain], encoding)
            index.commit()
        roots.keep(roots.keys() - {inner})
        waiting.remove(inner)
        yield path


def _meets(index: Index, roots: Roots, inner: str, key: str) -> bool:
    """Return whether a folder, as a part of another, would have ids that a third one has."""
    start = roots.prefix(key) + _below(roots[inner].root, Path(roots[key].root))
    for other, place in roots.items():
        if place.name or other in (inner, key):
            continue
        prefix = roots.prefix(other)
        if prefix and start.startswith(prefix):
            return True
        if not prefix and any(n.startswith(start) for n, _ in index.fingerprinted(f"{other}:")):
            return True
    return False


def _below(path: str, root: Path) -> str:
    return f"{id_of_path(Path(path).relative_to(root))}/"
