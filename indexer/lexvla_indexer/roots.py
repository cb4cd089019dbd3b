"""Where the sources of an index lie: the folders that its documents' uris start from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from lexvla.errors import IndexCorruptError, IndexVersionError, InputError
from lexvla_indexer.base import Index
from lexvla_indexer.document import Document
from lexvla_indexer.fingerprint import source_of
from lexvla_indexer.path_ids import id_of_path, path_of_id, text_of_path

__all__ = ["Roots", "SourcePlace", "key_of"]

NOTE = "roots"
_FORMAT_VERSION = 2


class SourcePlace(NamedTuple):
    """Name a source.

    Attributes:
        root: The folder that uris start from: a folder of images, or that of a manifest or shards.
        name: The name of the manifest or the pattern of the shards there; empty for a folder.
    """

    root: str
    name: str

    @property
    def path(self) -> str:
        """The source as one path."""
        return str(Path(self.root, self.name))

    def path_of(self, uri: str) -> Path:
        """Return the path, from the root, that a uri means: of a folder of images it is an id."""
        return Path(uri) if self.name else path_of_id(uri)


def key_of(place: SourcePlace) -> str:
    """Return a short hash of a source's place."""
    return hashlib.sha256(os.fsencode("\0".join(place))).hexdigest()[:16]


class Roots(Mapping[str, SourcePlace]):
    """The sources of an index by the key in their documents' fingerprints.

    A key is the hash of the place where the source was first indexed, and stays when it moves.

    Ids of the first folder of images are paths under it. Those of every further one have its name
    in front, so that equal paths in two folders are two documents.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._places: dict[str, SourcePlace] = {}
        self._prefixes: dict[str, str] = {}
        data = index.read_note(NOTE)
        if data is None:
            return
        try:
            version = int(data["format_version"])
            if version != _FORMAT_VERSION:
                age = "newer than this program" if version > _FORMAT_VERSION else "old"
                rule = f"its roots of format {version} are {age}; index the items again"
                raise IndexVersionError(f"{index}: {rule}")
            for key, place in data["sources"].items():
                self._places[key] = SourcePlace(str(place["root"]), str(place["name"]))
                self._prefixes[key] = str(place["prefix"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IndexCorruptError(f"{index}: no readable roots ({error!r})") from error

    def __getitem__(self, key: str) -> SourcePlace:
        return self._places[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def locate(self, document: Document, instead: Path | None = None) -> str:
        """Return the path of a document's file, as `text_of_path` writes it.

        If the index has a single root and that is not on this machine, ``instead`` stands for it.
        """
        place = self.get(source_of(document.fingerprint))
        if place is None or not document.uri:
            return document.uri
        root = Path(place.root)
        if instead is not None and not root.is_dir():
            root = instead if len({each.root for each in self.values()}) == 1 else root
        return text_of_path(Path(os.path.normpath(root / place.path_of(document.uri))))

    def prefix(self, key: str) -> str:
        """Return what the ids of a source start with besides paths: empty, or ends in a slash."""
        return self._prefixes[key]

    def key_at(self, place: SourcePlace) -> str | None:
        """Return the key of the source in a place."""
        return next((key for key, other in self.items() if other == place), None)

    def key_around(self, place: SourcePlace) -> str | None:
        """Return the key of the outermost folder of images that a folder is, or lies in."""
        around = [
            (len(other.root), key)
            for key, other in self.items()
            if not other.name and Path(place.root).is_relative_to(other.root)
        ]
        return min(around)[1] if around else None

    def enter(self, place: SourcePlace, key: str = "") -> str:
        """Note a source that is in no known place, under ``key`` if that is given; return its key.

        If there is one of that key, it has moved since it was encoded. The index must be this
        process's to write.
        """
        if key in self:
            return key
        number = 0
        while not key or key in self:  # another source was there first, and has moved
            key = key_of(place._replace(name=f"{place.name}\0{number}" if number else place.name))
            number += 1
        self._prefixes[key] = "" if place.name else self._new_prefix(Path(place.root))
        self._write({**self._places, key: place})
        return key

    def _new_prefix(self, root: Path) -> str:
        """Return a prefix for a new folder's ids, with which no id starts yet.

        None is needed if no other folder's ids are without one, and if no folder in this one has
        the name that another folder's ids start with.
        """
        folders = {
            self._prefixes[key]
            for key, place in self.items()
            if not place.name and not Path(place.root).is_relative_to(root)
        }
        if "" not in folders and not any((root / path_of_id(each)).is_dir() for each in folders):
            return ""
        name = id_of_path(Path(root.name or "root"))
        for number in count(1):
            prefix = f"{name}/" if number == 1 else f"{name}-{number}/"
            after = self._index.list_documents(limit=1, after=(prefix,)).documents
            used = bool(after) and after[0].id.startswith(prefix)
            if prefix not in self._prefixes.values() and not used:
                return prefix
        raise AssertionError  # numbers do not end

    def keep(self, keys: Container[str]) -> None:
        """Forget all sources but those with these keys.

        The index must be this process's to write.
        """
        kept = {key: place for key, place in self.items() if key in keys}
        if len(kept) < len(self):
            self._write(kept)

    def move(self, was: str, root: str) -> None:
        """Note that all sources in a folder lie in another one now.

        InputError if that would be the place of another source.
        """
        changed = {key: p._replace(root=root) for key, p in self.items() if p.root == was}
        for key, place in self.items():
            if key not in changed and place in changed.values():
                raise InputError(place.path, "is another source of this index")
        self._write({**self._places, **changed})

    def _write(self, places: dict[str, SourcePlace]) -> None:
        self._places = places
        sources: dict[str, Any] = {
            key: {**place._asdict(), "prefix": self._prefixes[key]} for key, place in places.items()
        }
        self._index.write_note(NOTE, {"format_version": _FORMAT_VERSION, "sources": sources})
