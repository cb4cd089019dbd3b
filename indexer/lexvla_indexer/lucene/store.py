"""The directory of a Lucene index: opening it, its writer, and what lies beside it.

vocabulary.json      the terms of the lexical columns
quantization.json    how weights became integers, for people and other programs; an index of ours
                     says it in its commits too, and goes by these. Its least and greatest
                     weights are those of the commit that fixed the scale
the other files      are Lucene's; ``write.lock`` is locked by the one writer
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lexvla.errors import IndexCorruptError, ModelError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.lucene.jvm import java_class, java_errors
from lexvla_indexer.lucene.reader import Snapshot

__all__ = ["Store"]

_VOCABULARY = "vocabulary.json"
_QUANTIZATION = "quantization.json"
_NEW = ".new"
# What a directory may hold if making an index in it was cut short.
_BEGUN = ("write.lock", _VOCABULARY, _QUANTIZATION, "_", "segments", "pending_segments")
_INDEX = "org/apache/lucene/index/"


class Store:
    """Open readers and the writer of one directory. Java must run.

    Args:
        path: The directory, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._vocabulary = path / _VOCABULARY
        self._quantization = path / _QUANTIZATION
        self._directory: Any = None

    def make(self) -> None:
        """Make the directory.

        Raises:
            IndexCorruptError: The path is a file, or a directory that holds other things.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise IndexCorruptError(f"{self.path}: is no directory") from error
        names = [file.name for file in self.path.iterdir()]
        foreign = [name for name in names if not name.startswith(_BEGUN)]
        if foreign and not self.exists:
            rule = f"is no Lucene index, and holds other files ({min(foreign)})"
            raise IndexCorruptError(f"{self.path}: {rule}; give a new directory")

    @property
    def exists(self) -> bool:
        """Whether there is an index."""
        return any(self.path.glob("segments_*"))

    def check(self) -> None:
        """Refuse a directory without an index.

        Raises:
            IndexCorruptError: There is none.
        """
        if not self.exists:
            made = f"lexvla index SOURCE --index lucene:{self.path}"
            raise IndexCorruptError(f"no Lucene index at {self.path}; make one with: {made}")

    def open(self) -> Snapshot:
        """Open the newest commit.

        Raises:
            IndexCorruptError: There is no index, or it is damaged.
            IndexVersionError: Another version of Lucene wrote it.
        """
        self.check()
        with java_errors(self.path):
            reader = java_class("org.apache.lucene.index.DirectoryReader").open(
                self.directory(),
                signature=f"(Lorg/apache/lucene/store/Directory;)L{_INDEX}DirectoryReader;",
            )
            return Snapshot(self.path, reader)

    def newer(self, snapshot: Snapshot) -> Snapshot:
        """Return a newer commit, or the same snapshot if there is none."""
        # Lucene would read its newest file each time, which takes longer than some searches.
        if self._newest() == snapshot.generation:
            return snapshot
        with java_errors(self.path):
            reader = java_class("org.apache.lucene.index.DirectoryReader").openIfChanged(
                snapshot.reader, signature=f"(L{_INDEX}DirectoryReader;)L{_INDEX}DirectoryReader;"
            )
        return snapshot if reader is None else Snapshot(self.path, reader)

    def _newest(self) -> int:
        """Return the number of the newest commit, by which its file is named."""
        names = (file.name for file in self.path.glob("segments_*"))
        return max((int(name.rpartition("_")[2], 36) for name in names), default=0)

    def directory(self) -> Any:
        """Return Lucene's object for the directory."""
        if self._directory is None:
            paths = java_class("java.nio.file.Paths")
            folder = paths.get(os.fspath(self.path.absolute()))
            self._directory = java_class("org.apache.lucene.store.FSDirectory").open(
                folder, signature="(Ljava/nio/file/Path;)Lorg/apache/lucene/store/FSDirectory;"
            )
        return self._directory

    def close(self) -> None:
        """Give up Lucene's object for the directory."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def load_vocabulary(self, sha256: str | None = None) -> Vocabulary | None:
        """Read the vocabulary; return ``None`` if there is none and none is named.

        Args:
            sha256: The hash that the commit names.

        Raises:
            IndexCorruptError: The file is missing, damaged, or another one.
        """
        if sha256 is None and not self._vocabulary.exists():
            return None
        try:
            vocabulary = Vocabulary.load(self._vocabulary)
        except ModelError as error:
            raise IndexCorruptError(str(error)) from error
        if sha256 not in (None, vocabulary.sha256):
            raise IndexCorruptError(f"{self._vocabulary}: is not the vocabulary of this index")
        return vocabulary

    def save_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Write the vocabulary durably, whole or not at all."""
        new = self._vocabulary.with_name(_VOCABULARY + _NEW)
        vocabulary.save(new)
        self._put(new, self._vocabulary)

    def load_quantizers(self) -> dict[str, ImpactQuantizer]:
        """Read how the legs' weights became integers; of none if there is no such file.

        Raises:
            IndexCorruptError: The file is damaged.
        """
        if not self._quantization.exists():
            return {}
        try:
            return ImpactQuantizer.load(self._quantization)
        except ValueError as error:
            raise IndexCorruptError(str(error)) from error

    def save_quantizers(self, legs: Mapping[str, ImpactQuantizer]) -> None:
        """Write how the legs' weights became integers, durably, whole or not at all."""
        new = self._quantization.with_name(_QUANTIZATION + _NEW)
        ImpactQuantizer.save(new, legs)
        self._put(new, self._quantization)

    def _put(self, new: Path, name: Path) -> None:
        _fsync(new)
        new.replace(name)
        _fsync(self.path)

    def size(self) -> int:
        """Return the bytes of all files together."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
