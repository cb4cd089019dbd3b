"""What one thread sees of an index: one commit, until it moves on to the newest."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, UnsupportedError
from lexvla_indexer.base import Results
from lexvla_indexer.embedded.manifest import Manifest, State
from lexvla_indexer.embedded.segment import Segment
from lexvla_indexer.embedded.store import Store
from lexvla_indexer.filters import Filter
from lexvla_indexer.legs import Leg

__all__ = ["Masks", "Reader", "SegmentCache", "Snapshot"]

Masks = Mapping[int, np.ndarray | None]  # by segment: which rows may be found; None for all


@dataclass(frozen=True)
class Snapshot:
    """Hold one commit: its state, its segments, and which of their rows are not deleted."""

    state: State
    segments: dict[int, Segment]
    live: Masks

    def count(self) -> int:
        """Return the number of documents."""
        deleted = sum(map(len, self.state.tombstones.values()))
        return sum(entry.rows for entry in self.state.segments.values()) - deleted

    def search(
        self, queries: Encoding, k: int, leg: Leg, masks: Masks, exact: bool | None
    ) -> list[Results]:
        """Return the k best documents of all segments for each query.

        Args:
            queries: One query a row.
            k: The most documents to return for each.
            leg: What to score by.
            masks: Which rows may be found.
            exact: See `lexvla_indexer.embedded.EmbeddedIndex.search`.

        Raises:
            UnsupportedError: The queries have no such leg.
        """
        matrix = getattr(queries, leg)
        if matrix is None:
            raise UnsupportedError(f"the queries have no {leg} leg")
        if leg == "dense":
            return self._search_dense(matrix, k, masks, bool(exact))
        legs = {number: segment.sparse[leg] for number, segment in self.segments.items()}

        def answer(row: int) -> Results:
            query = matrix[row : row + 1] if len(queries) > 1 else matrix
            found = [
                (number, *own.top(query, k, masks[number], exact is not False))
                for number, own in legs.items()
            ]
            return self._best(found, k)

        if len(queries) == 1:
            return [answer(0)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(answer, range(len(queries))))

    def _search_dense(
        self, vectors: np.ndarray, k: int, masks: Masks, exact: bool
    ) -> list[Results]:
        found: list[list[tuple[int, np.ndarray, np.ndarray]]] = [[] for _ in range(len(vectors))]
        for number, segment in self.segments.items():
            if segment.dense is not None:
                answers = segment.dense.top_batch(vectors, k, masks[number], exact)
                for own, answer in zip(found, answers, strict=True):
                    own.append((number, *answer))
        return [self._best(own, k) for own in found]

    def _best(self, found: Sequence[tuple[int, np.ndarray, np.ndarray]], k: int) -> Results:
        """Merge the answers of segments: each its number, scores and rows, best first."""
        if len(found) == 1:
            ((number, scores, rows),) = found
            return Results(self.segments[number].ids(rows), scores)
        hits = [
            hit
            for number, scores, rows in found
            for hit in zip(scores.tolist(), self.segments[number].ids(rows), strict=True)
        ]
        hits = sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:k]
        return Results([name for _, name in hits], np.array([score for score, _ in hits]))


class SegmentCache:
    """Open each segment once for all threads, for as long as one of them uses it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._open: WeakValueDictionary[int, Segment] = WeakValueDictionary()

    def get(self, state: State) -> dict[int, Segment]:
        """Return the segments of a commit.

        Raises:
            IndexCorruptError: A file is missing or damaged.
        """
        segments = {}
        with self._lock:
            for number, entry in state.segments.items():
                segment = self._open.get(number)
                if segment is None:
                    segment = self._store.segment(number, entry, state.widths)
                    self._open[number] = segment
                segments[number] = segment
        return segments


class Reader:
    """See one commit of an index. For one thread.

    Args:
        store: The files of the index.
        cache: The open segments of all readers.

    Raises:
        IndexCorruptError: There is no index, or it is damaged.
        IndexVersionError: A newer program wrote the index.
    """

    def __init__(self, store: Store, cache: SegmentCache) -> None:
        self._cache = cache
        self.manifest: Manifest = store.manifest(writable=False)
        self._snapshot: Snapshot | None = None
        # Of the last filter: a search over several legs asks with the same one for each.
        self._chosen: tuple[tuple[int, str], Masks] | None = None

    def __del__(self) -> None:
        # Of a thread that has ended.
        if hasattr(self, "manifest"):
            self.manifest.close()

    @property
    def snapshot(self) -> Snapshot:
        """The commit of the last `refresh`."""
        return self._snapshot or self.refresh()

    def refresh(self) -> Snapshot:
        """Move to the newest commit.

        Raises:
            IndexCorruptError: It is damaged.
        """
        manifest = self.manifest
        while self._snapshot is None or manifest.refresh() != self._snapshot.state.commit:
            state = manifest.state()
            try:
                segments = self._cache.get(state)
            except IndexCorruptError:
                # A writer may have merged segments meanwhile, and removed their files.
                if manifest.refresh() == state.commit:
                    self._snapshot = None
                    raise
                continue
            live = {n: _live(e.rows, state.tombstones.get(n)) for n, e in state.segments.items()}
            self._snapshot = Snapshot(state, segments, live)
        return self._snapshot

    def choose(self, text: str) -> Masks:
        """Return the rows of the snapshot's segments that a filter chooses.

        Raises:
            FilterSyntaxError: The filter cannot be read.
        """
        state = self.snapshot.state
        key = (state.commit, text)
        if self._chosen is None or self._chosen[0] != key:
            self._chosen = key, self.manifest.select(Filter.parse(text), state.segments)
        return self._chosen[1]


def _live(rows: int, deleted: np.ndarray | None) -> np.ndarray | None:
    if deleted is None:
        return None
    mask = np.ones(rows, np.bool_)
    mask[deleted] = False
    return mask
