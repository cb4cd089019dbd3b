"""The one writer of an index: commits what is staged, and merges segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.document import Document
from lexvla_indexer.embedded.layout import Store
from lexvla_indexer.embedded.manifest import Entry, State
from lexvla_indexer.embedded.merging import SEGMENT_ROWS, SegmentRows, due, live_rows, merged
from lexvla_indexer.embedded.reader import SegmentCache
from lexvla_indexer.legs import widths_of
from lexvla_indexer.staging import Staging

__all__ = ["Writer"]


class Writer:
    """Change an index. For one thread at a time.

    It locks the store, or raises IndexLockedError, and clears what a crash has left.
    """

    def __init__(self, store: Store, cache: SegmentCache) -> None:
        self._store = store
        self._cache = cache
        store.lock()
        self._manifest = store.manifest(writable=True)
        store.sweep(self._manifest.state().segments)

    def commit(self, staging: Staging, vocabulary: Vocabulary) -> None:
        """Make everything staged durable and visible, or none of it; then merge what is due.

        The staging is empty afterwards.
        """
        state = self._manifest.state()
        documents: list[Document] = []
        rows: list[int] = []
        parts: Iterable[SegmentRows] = ()
        meta: dict[str, str | dict[str, int]] = {}
        if staging.documents:
            documents, encoding = staging.rows()
            rows = _cut(len(documents))
            parts = _parts(documents, encoding, rows)
            meta["widths"] = widths_of(encoding)
            if state.vocabulary_sha256 != vocabulary.sha256:
                self._store.save_vocabulary(vocabulary)
                meta["vocabulary_sha256"] = vocabulary.sha256
        numbered = dict(enumerate(rows, state.next_segment))
        # Files are written while documents go into SQLite.
        with self._clean(), ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._write, state, parts)
            self._manifest.commit(
                numbered, documents, staging.removed, meta, lambda: writing.result()[0]
            )
        staging.clear()
        while numbers := self._due():
            self._merge(numbers)

    def compact(self) -> None:
        """Merge all segments and free the space of deleted rows."""
        state = self._manifest.state()
        if not self._is_compact(state):
            self._merge(list(state.segments))
        self._manifest.shrink()

    def close(self) -> None:
        """Let another writer in."""
        self._manifest.close()
        self._store.unlock()

    def _is_compact(self, state: State) -> bool:
        """Return whether the rows are split into segments as in a new index."""
        rows = [entry.rows for entry in state.segments.values()]
        if state.tombstones or rows != _cut(sum(rows)):
            return False
        segments = self._cache.get(state).values()
        ends = [name for s in segments for name in s.ids(np.array([0, s.count - 1]))]
        return ends == sorted(ends)

    def _due(self) -> list[int]:
        state = self._manifest.state()
        rows = {number: entry.rows for number, entry in state.segments.items()}
        return due(rows, {number: len(deleted) for number, deleted in state.tombstones.items()})

    def _merge(self, numbers: Sequence[int]) -> None:
        state = self._manifest.state()
        segments, nothing = self._cache.get(state), np.empty(0, np.int64)
        parts = [
            (segments[n], live_rows(segments[n].count, state.tombstones.get(n, nothing)))
            for n in numbers
        ]
        with self._clean():
            new, ids = self._write(state, merged(parts, SEGMENT_ROWS))
            self._manifest.merge(numbers, new, ids)
        self._store.sweep(self._manifest.state().segments)

    @contextmanager
    def _clean(self) -> Iterator[None]:
        """Remove the files of a failed operation: they may be what fills the disk."""
        try:
            yield
        except BaseException:
            self._store.sweep(self._manifest.state().segments)
            raise

    def _write(
        self, state: State, parts: Iterable[SegmentRows]
    ) -> tuple[dict[int, Entry], list[str]]:
        """Write segments, and return them with the ids of all their rows."""
        written: dict[int, Entry] = {}
        names: list[str] = []
        for number, (ids, encoding, text) in enumerate(parts, state.next_segment):
            written[number] = self._store.write_segment(number, ids, encoding, text)
            names += ids
        return written, names


def _cut(rows: int) -> list[int]:
    """Return the number of rows of each segment into which so many rows are split."""
    return [min(SEGMENT_ROWS, rows - first) for first in range(0, rows, SEGMENT_ROWS)]


def _parts(
    documents: Sequence[Document], encoding: Encoding, rows: Sequence[int]
) -> Iterator[SegmentRows]:
    first = 0
    for count in rows:
        span = slice(first, first + count)
        own = documents[span]
        # A copy of all might not fit into memory.
        vectors = encoding if len(rows) == 1 else encoding[span]
        yield [d.id for d in own], vectors, TextRows.of([d.text for d in own])
        first += count
