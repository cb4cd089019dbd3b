"""The embedded engine: exact search over segments on the local disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Index, Results, Scored
from lexvla_indexer.embedded import postings
from lexvla_indexer.embedded.commit_columns import CommitColumns
from lexvla_indexer.embedded.layout import Store
from lexvla_indexer.embedded.reader import Reader, SegmentCache, Snapshot
from lexvla_indexer.embedded.writer import Writer
from lexvla_indexer.legs import Leg, VectorLeg

__all__ = ["EmbeddedIndex"]

T = TypeVar("T")


class EmbeddedIndex(Index):
    """Keep an index in a directory of the local disk.

    Any number of readers and one writer may have it open. A reader answers from one whole commit,
    and moves to the newest at `search`, `count` and `info`; `fetch`, `documents` and `vectors`
    answer from the commit of the last search in the same thread, so that hits and their documents
    agree.

    Scores are exact, in float64, unless a search asks for integers alone. Commits merge small
    segments as they accumulate. Memory: what is staged or merged, and the file pages in use.

    Arguments and errors are those of `lexvla_indexer.open_index`. Without a vocabulary, a new index
    names its terms by their column numbers.
    """

    def __init__(
        self,
        directory: str | Path,
        create: bool = False,
        vocabulary: Vocabulary | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(Path(directory))
        self._store = Store(Path(directory))
        self._writer: Writer | None = None
        self._cache = SegmentCache(self._store)
        self._columns = CommitColumns()
        self._local = threading.local()
        self._readers: WeakSet[Reader] = WeakSet()
        with self._opening():
            if create:
                self._store.make(vocabulary, model)
            self.model = self._refresh().state.model
            if create:
                self._own_writer()
            self._agree(vocabulary)

    def commit(self) -> None:
        """Make everything staged durable and visible, or none of it.

        Raises:
            IndexCorruptError: A segment to be merged is damaged. What was staged is committed.
            OSError: A file cannot be written; the error names it. What was staged stays staged, to
                be committed when there is room, unless only a merge failed: then it is committed.
        """
        with self._writing:
            if self._staging:
                self._own_writer().commit(self._staging, self.vocabulary)
        self._refresh()

    def compact(self) -> None:
        """Commit, then merge all segments and free the space of deleted rows.

        The result is bit for bit what a new index of the same documents would be. Vectors pass
        through memory a segment at a time: up to 1,048,576 documents.

        Raises:
            IndexCorruptError: A file of a segment is damaged.
            IndexLockedError: Another writer has the index.
            OSError: A file cannot be written; the error names it. What was staged may be
                committed; nothing else has changed.
        """
        with self._writing:
            writer = self._own_writer()
            self.commit()
            writer.compact()
        self._refresh()

    def verify(self) -> list[str]:
        """Read all files of all segments. Return what is wrong with each damaged one."""
        segments = self._refresh().segments.values()
        return [damage for segment in segments for damage in segment.damage()]

    def warm_up(self) -> None:
        """Load the compiled loops, if the index is large enough to gain by them."""
        segments = self._refresh().segments.values()
        legs = [leg for segment in segments for leg in segment.sparse.values()]
        if any(len(leg.postings.impacts) >= postings.WARM_FROM for leg in legs):
            postings.kernels()

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: VectorLeg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
        exact: bool | None = None,
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query; see `Index.search`.

        Scores are float64: the exact products of the stored float32 values, summed, unless
        ``exact`` is False. A thread for each processor answers several queries.

        ``exact=True`` finds the best of all rows by exact scores. ``False`` lets the sparse legs
        score by the 8-bit impacts alone; `lexvla_indexer.impacts.ImpactQuantizer.bound` bounds how
        far that changes a score. ``None`` is as ``True``, except for the dense leg of segments of
        100,000 rows or more that have codes: there it reads the inverted lists nearest to the
        query; `info` reports their recall.

        Raises:
            InputError: No document has a field of the filter.
            IndexCorruptError: What is read of the index is damaged.
            OSError: A file cannot be read; the error names it.
            OptionalDependencyError: There are inverted lists to read, and faiss is missing.
        """
        return self._ask(lambda reader: reader.search(queries, k, leg, filter, exact))

    def search_legs(
        self,
        query: Encoding,
        weights: Mapping[Leg, float],
        k: int,
        depth: int,
        filter: str | None = None,  # noqa: A002 - the public word for it
        text: str = "",
    ) -> Scored:
        """Return the best of all documents by the weighted sum of several legs' exact scores."""
        return self._ask(lambda reader: reader.search_legs(query, weights, k, depth, filter, text))

    def _ask(self, ask: Callable[[Reader], T], newest: bool = True) -> T:
        if newest:
            self._refresh()
        return ask(self._reader())

    def _reader(self) -> Reader:
        self._check_open()
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = Reader(self._store, self._cache, self._columns)
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

    def fingerprinted(self, start: str = "") -> Iterator[tuple[str, str]]:
        """Yield ids and fingerprints without reading anything else of the documents."""
        yield from self._ask(lambda reader: reader.manifest.fingerprinted(start))

    def _fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        return self._ask(lambda reader: reader.manifest.fingerprints(ids))

    def _widths(self) -> Mapping[str, int]:
        return self._refresh().state.widths

    def _own_writer(self) -> Writer:
        self._check_open()
        if self._writer is None:
            self._writer = Writer(self._store, self._cache)
        return self._writer

    def _close(self) -> None:
        for reader in list(self._readers):
            reader.manifest.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._local = threading.local()
        self._store.unlock()
