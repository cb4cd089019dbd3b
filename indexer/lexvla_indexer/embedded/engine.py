"""The embedded engine: exact search over segments on the local disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar
from weakref import WeakSet

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, UnknownDocumentError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Fetched, Results
from lexvla_indexer.document import Document
from lexvla_indexer.embedded.accuracy import accuracy
from lexvla_indexer.embedded.manifest import FORMAT_VERSION, Manifest, Place
from lexvla_indexer.embedded.reader import Reader, SegmentCache, Snapshot
from lexvla_indexer.embedded.store import Store
from lexvla_indexer.embedded.writer import Writer
from lexvla_indexer.legs import Leg, check_added, check_asked, no_rows, stack

__all__ = ["EmbeddedIndex"]

T = TypeVar("T")


class EmbeddedIndex:
    """Keep an index in a directory of the local disk.

    Any number of readers and one writer may have it open. A reader answers from one whole commit,
    and moves to the newest at `search`, `count` and `info`; `fetch` and `vectors` answer from the
    commit of the last search in the same thread, so that hits and their documents agree. Any
    number of threads may share one object.

    Scores are exact, in float64, unless a search asks for integers alone. Commits merge small
    segments as they pile up. Memory: what is staged or merged, and the pages of the files in use.

    Args:
        directory: Where the index lies.
        create: Make the index if there is none, and lock it for writing.
        vocabulary: The terms of the lexical columns. Without one, a new index names its terms by
            their column numbers.
        model: The name of the model that the vectors come from; kept by a new index.

    Raises:
        IndexCorruptError: There is no index, or it is damaged.
        IndexLockedError: ``create`` is set and another writer has the index.
        IndexVersionError: A newer program wrote the index.
        VocabularyMismatchError: The index has another vocabulary.
    """

    def __init__(
        self,
        directory: str | Path,
        create: bool = False,
        vocabulary: Vocabulary | None = None,
        model: str | None = None,
    ) -> None:
        self.directory: Path | None = Path(directory)
        self.vocabulary = Vocabulary(())
        self._store = Store(Path(directory))
        self._writing = threading.RLock()
        self._writer: Writer | None = None
        self._cache = SegmentCache(self._store)
        self._local = threading.local()
        self._readers: WeakSet[Reader] = WeakSet()
        self._closed = False
        try:
            if create:
                self._store.make(vocabulary, model)
            state = self._refresh().state
            self.model = state.model
            if create:
                self._lock()
            if vocabulary is not None and not len(self.vocabulary):
                self.vocabulary = vocabulary
            elif vocabulary is not None and vocabulary != self.vocabulary:
                raise VocabularyMismatchError(
                    f"{directory} was made with {self.vocabulary}, not with {vocabulary}"
                )
        except BaseException:
            self.close()
            raise

    def add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage documents; one whose id is known replaces the old one.

        Vectors without patches may share an index with vectors that have them: their words are
        stored with patch -1.

        Raises:
            IndexLockedError: Another writer has the index.
            InputError: An id occurs twice in this call.
            UnsupportedError: The legs are not those of the index.
            ValueError: The number of documents is not the number of vectors.
            VocabularyMismatchError: A leg has another width than in the index.
        """
        if len(documents) != len(encoding):
            raise ValueError(f"{len(documents)} documents with {len(encoding)} vectors")
        with self._writing:
            self._add(documents, encoding)

    def _add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        writer = self._lock()
        check_added(encoding, writer.widths, self.vocabulary, self.directory)
        if not documents:
            return
        writer.staging.add(documents, encoding)
        if not len(self.vocabulary):
            self.vocabulary = Vocabulary(map(str, range(encoding.lexical.shape[1])))

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions. Return how many of the ids were there.

        Raises:
            IndexLockedError: Another writer has the index.
        """
        with self._writing:
            return self._lock().delete(ids)

    def commit(self) -> None:
        """Make all that is staged durable and visible, or nothing of it.

        Raises:
            IndexCorruptError: A segment that was to be merged is damaged. What was staged is
                committed all the same.
            OSError: A file cannot be written; the error names it. What was staged stays so, to be
                committed when there is room, unless it was a merge that found none: then it is
                committed.
        """
        with self._writing:
            if self._writer is not None and self._writer.staging:
                self._writer.commit(self.vocabulary)
        self._refresh()

    def compact(self) -> None:
        """Commit, then merge all segments and give up the space of deleted rows.

        The result is what a new index of the same documents would be, to the bit. The vectors of
        no more than 1,048,576 documents pass through memory at once: so many a segment has.

        Raises:
            IndexCorruptError: A file of a segment is damaged.
            IndexLockedError: Another writer has the index.
            OSError: A file cannot be written; the error names it. What was staged may be
                committed; nothing else has changed.
        """
        with self._writing:
            self._lock().compact(self.vocabulary)
        self._refresh()

    def verify(self) -> list[str]:
        """Read all files of all segments. Return what is wrong with each damaged one."""
        snapshot = self._refresh()
        return [damage for segment in snapshot.segments.values() for damage in segment.damage()]

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: Leg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
        exact: bool | None = None,
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query.

        Best first, equal scores by id ascending. Scores are float64, but for ``exact=False`` the
        exact products of the stored float32 values added up. With a filter, only documents that
        it chooses count; see `lexvla_indexer.filters`. Several queries are answered by as many
        threads as there are processors.

        Args:
            queries: One query a row.
            k: The most documents to return for each.
            leg: What to score by.
            filter: Which documents may be found.
            exact: ``True`` finds the best of all rows by exact scores. ``False`` lets the sparse
                legs score by the 8-bit impacts alone;
                `lexvla_indexer.impacts.ImpactQuantizer.bound` bounds what that changes a score
                by. ``None``, the default, is as ``True``, but for the dense leg of segments of
                100,000 rows or more that have codes: there it reads the inverted lists nearest to
                the query; `info` tells of their recall.

        Raises:
            FilterSyntaxError: The filter cannot be read.
            IndexCorruptError: What is read of the index is damaged.
            OSError: A file cannot be read; the error names it.
            OptionalDependencyError: There are inverted lists to read, and faiss is missing.
            UnsupportedError: The index or the queries lack the leg.
            ValueError: k is below 1, or there is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        snapshot = self._refresh()
        check_asked(queries, leg, snapshot.state.widths, self.directory)
        masks = snapshot.live if filter is None else self._reader().choose(filter)
        return snapshot.search(queries, k, leg, masks, exact)

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors, in the order of the ids.

        Raises:
            IndexCorruptError: The manifest and the segments do not fit, or a row is damaged.
            UnknownDocumentError: The index has no such id.
            OSError: A file cannot be read; the error names it.
        """
        snapshot, found = self._look_up(ids, Manifest.find)
        places = {name: place for name, (_, place) in found.items()}
        return Fetched([found[name][0] for name in ids], self._stored(snapshot, ids, places))

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return documents' stored vectors alone, in the order of the ids.

        Raises:
            IndexCorruptError: As `fetch`, as all that follow.
            UnknownDocumentError: The index has no such id.
            OSError: See there.
        """
        snapshot, places = self._look_up(ids, Manifest.places)
        return self._stored(snapshot, ids, places)

    def _look_up(
        self, ids: Sequence[str], ask: Callable[[Manifest, Sequence[str]], dict[str, T]]
    ) -> tuple[Snapshot, dict[str, T]]:
        """Ask the manifest for these ids, and return what it says with the commit that it is of."""
        reader = self._reader()
        snapshot, found = reader.snapshot, ask(reader.manifest, ids)
        if not found.keys() >= set(ids):
            snapshot, found = self._refresh(), ask(reader.manifest, ids)
        for name in ids:
            if name not in found:
                raise UnknownDocumentError(name)
        return snapshot, found

    def _stored(
        self, snapshot: Snapshot, ids: Sequence[str], places: Mapping[str, Place]
    ) -> Encoding:
        rows: dict[int, list[int]] = {}
        positions: dict[int, list[int]] = {}
        for position, name in enumerate(ids):
            place = places[name]
            rows.setdefault(place.segment, []).append(place.row)
            positions.setdefault(place.segment, []).append(position)
        if not rows:
            return no_rows(snapshot.state.widths or {"lexical": len(self.vocabulary)})
        parts = []
        for number, own in rows.items():
            names = [ids[position] for position in positions[number]]
            parts.append(self._rows(snapshot, number, np.array(own), names))
        order = np.argsort(np.concatenate([positions[number] for number in rows]))
        return stack(parts)[order]

    def _rows(
        self, snapshot: Snapshot, number: int, rows: np.ndarray, names: Sequence[str]
    ) -> Encoding:
        """Return rows of a segment that the manifest says are those of these ids."""
        segment = snapshot.segments.get(number)
        there = segment is not None and 0 <= rows.min() <= rows.max() < segment.count
        if segment is None or not there or segment.ids(rows) != names:
            rule = f"manifest.sqlite and segment {number} do not fit"
            raise IndexCorruptError(f"{self.directory}: damaged: {rule}")
        return segment.encoding(rows)

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that the index has, staged ones included."""
        with self._writing:
            self._refresh()
            found = self._reader().manifest.fingerprints(ids)
            return found if self._writer is None else self._writer.staging.fingerprints(found, ids)

    def count(self) -> int:
        """Return the number of searchable documents."""
        return self._refresh().count()

    def info(self) -> dict[str, Any]:
        """Describe the index: counts, size in bytes, vocabulary, model, versions and accuracy.

        Of the accuracy see `lexvla_indexer.embedded.accuracy`.
        """
        snapshot = self._refresh()
        state, documents = snapshot.state, snapshot.count()
        words = sum(s.active_words(snapshot.live[n]) for n, s in snapshot.segments.items())
        return {
            "engine": "embedded",
            "documents": documents,
            "segments": len(state.segments),
            "deleted_rows": sum(map(len, state.tombstones.values())),
            "bytes": self._store.size(),
            "mean_active_words": words / documents if documents else 0.0,
            "legs": state.widths,
            **accuracy(snapshot),
            "vocabulary_size": len(self.vocabulary),
            "vocabulary_sha256": self.vocabulary.sha256,
            "model": self.model,
            "commit": state.commit,
            "format_version": FORMAT_VERSION,
            "writer_version": state.writer_version,
        }

    def close(self) -> None:
        """Give up files and the lock. What is staged and not committed is dropped."""
        with self._writing:
            self._closed = True
            for reader in list(self._readers):
                reader.manifest.close()
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._local = threading.local()
            self._store.unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _reader(self) -> Reader:
        """Return what this thread sees."""
        if self._closed:
            raise ValueError("the index is closed")
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = Reader(self._store, self._cache)
            self._local.reader = reader
            self._readers.add(reader)
        return reader

    def _refresh(self) -> Snapshot:
        """Move this thread to the newest commit."""
        snapshot = self._reader().refresh()
        sha256 = snapshot.state.vocabulary_sha256
        if sha256 not in ("", self.vocabulary.sha256):
            self.vocabulary = self._store.load_vocabulary(sha256)
        return snapshot

    def _lock(self) -> Writer:
        """Become the writer, if this index is not that yet."""
        if self._closed:
            raise ValueError("the index is closed")
        if self._writer is None:
            self._writer = Writer(self._store, self._cache)
        return self._writer
