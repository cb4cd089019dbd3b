"""What an index directory stores: its files, and the lock of its one writer.

manifest.sqlite    documents, deletions and live segments; it makes the directory an index
vocabulary.json    the terms of the lexical columns
segments/00000007  the seventh segment written; see `lexvla_indexer.embedded.segment`
lock               locked by the one writer
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, IndexLockedError, IndexMissingError, ModelError
from lexvla.version import program_version
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.durable import NEW, fsync, naming, publish, replacing
from lexvla_indexer.embedded.manifest import Entry, Manifest
from lexvla_indexer.embedded.segment import Segment, write_segment

__all__ = ["Store"]

logger = logging.getLogger(__name__)

# What a directory may hold after an interrupted creation of an index.
_BEGUN = ("lock", "segments", "vocabulary.json", "manifest.sqlite.new")


class Store:
    """Read and write the files of one index directory, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = path / "manifest.sqlite"
        self._vocabulary = path / "vocabulary.json"
        self._segments = path / "segments"
        self._lock: IO[str] | None = None

    def make(self, vocabulary: Vocabulary | None, model: str | None) -> None:
        """Lock the directory, and make it an empty index unless it is one already.

        A file, or a directory that holds other things, raises IndexCorruptError.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise IndexCorruptError(f"{self.path}: is not a directory") from error
        foreign = [f.name for f in self.path.iterdir() if not f.name.startswith(_BEGUN)]
        if foreign and not self._manifest.exists():
            rule = f"is not an index, and holds other files ({min(foreign)}); give a new directory"
            raise IndexCorruptError(f"{self.path}: {rule}")
        self.lock()
        if self._manifest.exists():
            return
        self._segments.mkdir(exist_ok=True)
        if any(self._segments.iterdir()):
            raise IndexCorruptError(f"{self._manifest}: missing, but there are segments")
        if vocabulary is not None:
            self.save_vocabulary(vocabulary)
        new = self._manifest.with_name(self._manifest.name + NEW)
        for leftover in self.path.glob(f"{new.name}*"):
            leftover.unlink()
        meta = {
            "vocabulary_sha256": "" if vocabulary is None else vocabulary.sha256,
            "model": model,
            "writer_version": program_version(),
        }
        Manifest.create(new, meta)
        publish(new, self._manifest)
        fsync(self.path.parent)

    def lock(self) -> None:
        """Become the one writer, unless this object is already, or raise IndexLockedError."""
        if self._lock is not None:
            return
        file = (self.path / "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise IndexLockedError(f"{self.path}: another writer has this index") from error
        self._lock = file

    def unlock(self) -> None:
        """Let another writer in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def manifest(self, writable: bool) -> Manifest:
        """Open the manifest; IndexMissingError if there is no index."""
        if self._manifest.exists():
            return Manifest(self._manifest, writable)
        if self._segments.exists():
            raise IndexCorruptError(f"{self._manifest}: missing")
        raise IndexMissingError(self.path)

    def load_vocabulary(self, sha256: str) -> Vocabulary:
        """Read the vocabulary that the manifest names; IndexCorruptError if it is not there."""
        try:
            vocabulary = Vocabulary.load(self._vocabulary)
        except ModelError as error:
            raise IndexCorruptError(str(error)) from error
        if vocabulary.sha256 != sha256:
            raise IndexCorruptError(f"{self._vocabulary}: is not the vocabulary of this index")
        return vocabulary

    def save_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Write the vocabulary, whole or not at all."""
        with replacing(self._vocabulary) as new, naming(new):
            vocabulary.save(new)

    def write_segment(
        self, number: int, ids: Sequence[str], encoding: Encoding, text: TextRows
    ) -> Entry:
        """Write a segment, whole or not at all; the commit that has the entry makes it live."""
        folder = self._folder(number)
        new = folder.with_name(folder.name + NEW)
        for leftover in (new, folder):  # of a failed commit, perhaps on a full disk
            shutil.rmtree(leftover, ignore_errors=True)
        checksum = write_segment(new, ids, encoding, text)
        publish(new, folder)
        return Entry(len(ids), checksum)

    def segment(self, number: int, entry: Entry, widths: Mapping[str, int]) -> Segment:
        """Open a segment; IndexCorruptError if a file is missing or damaged."""
        return Segment(self._folder(number), entry.rows, widths, entry.checksum)

    def sweep(self, live: Collection[int]) -> None:
        """Remove what no commit names: leftovers of a crash, or segments that were merged.

        Only the writer may do so. Readers that have such files mapped keep them.
        """
        self._segments.mkdir(exist_ok=True)  # a copy of an empty index may lack it
        names = {self._folder(number).name for number in live}
        leftovers = [f for f in self._segments.iterdir() if f.name not in names]
        for path in (*leftovers, *self.path.glob(f"{self._vocabulary.name}{NEW}")):
            logger.info("removing %s, which is in no commit", path)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _folder(self, number: int) -> Path:
        return self._segments / f"{number:08d}"
