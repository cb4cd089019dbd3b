"""The embedded engine: exact search over segments on the local disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import numpy as np

from indexer.base import Document, Fetched, Leg, Results
from indexer.embedded.manifest import FORMAT_VERSION, Manifest, State
from indexer.embedded.segment import Segment
from indexer.embedded.staging import Staging, no_rows, stack, widths_of
from indexer.embedded.store import Store
from indexer.filters import Filter
from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, UnsupportedError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary

__all__ = ["EmbeddedIndex"]

_NO_ROWS = np.empty(0, np.int64)


class _Snapshot(NamedTuple):
    state: State
    segments: dict[int, Segment]

    def deleted(self, number: int) -> np.ndarray:
        return self.state.tombstones.get(number, _NO_ROWS)


class EmbeddedIndex:
    """Keep an index in a directory of the local disk.

    Any number of readers and one writer may have it open. A reader answers from one whole commit,
    and moves to the newest at `search`, `count` and `info`; `fetch` answers from the commit of
    the last search, so that hits and their documents agree. `search` may be called from several
    threads, also while one thread writes.

    Scores are exact, in float64. Memory: what is staged, and the pages of the files in use.

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
        self._staging = Staging()
        self._mutex = threading.RLock()
        self._manifest: Manifest | None = None
        self._snapshot: _Snapshot | None = None
        # Of the last filter: a search over several legs asks with the same one for each.
        self._chosen: tuple[tuple[int, str], dict[int, np.ndarray]] | None = None
        try:
            if create:
                self._store.make(vocabulary, model)
            self._manifest = self._store.manifest(writable=create)
            state = self.refresh().state
            self.model = state.model
            if create:
                self._store.sweep(state.segments)
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
        self._lock()
        widths = widths_of(encoding)
        expected = self.refresh().state.widths or self._staging.widths or widths
        if len(self.vocabulary):
            expected = {**expected, "lexical": len(self.vocabulary)}
        for leg in expected.keys() & widths.keys():
            self._check_width(leg, expected[leg], widths[leg])
        if expected.keys() != widths.keys():
            have, come = ", ".join(expected), ", ".join(widths)
            raise UnsupportedError(f"the index keeps {have}; the new vectors have {come}")
        if not documents:
            return
        self._staging.add(documents, encoding)
        if not len(self.vocabulary):
            self.vocabulary = Vocabulary(map(str, range(widths["lexical"])))

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions. Return how many of the ids were there.

        Raises:
            IndexLockedError: Another writer has the index.
        """
        self._lock()
        committed = self._open_manifest().fingerprints(ids).keys() - self._staging.deleted
        count = 0
        for name in set(ids):
            count += self._staging.discard(name) or name in committed
        self._staging.deleted |= committed
        return count

    def commit(self) -> None:
        """Make all that is staged durable and visible, or nothing of it."""
        if not self._staging.documents and not self._staging.deleted:
            return
        manifest, state = self._open_manifest(), self.refresh().state
        documents: list[Document] = []
        meta: dict[str, str | dict[str, int]] = {}
        if self._staging.documents:
            documents, encoding = self._staging.rows()
            self._store.write_segment(state.commit + 1, [d.id for d in documents], encoding)
            meta["widths"] = widths_of(encoding)
            if state.vocabulary_sha256 != self.vocabulary.sha256:
                self._store.save_vocabulary(self.vocabulary)
                meta["vocabulary_sha256"] = self.vocabulary.sha256
        removed = self._staging.deleted | self._staging.documents.keys()
        with self._mutex:  # a search in another thread must not end this transaction
            manifest.commit(documents, removed, meta)
            self._staging = Staging()
            self.refresh()

    def compact(self) -> None:
        """Commit, then merge all segments into one and give up the space of deleted rows.

        The result is what a new index of the same documents would be, to the bit. All live
        vectors pass through memory at once.

        Raises:
            IndexLockedError: Another writer has the index.
        """
        self._lock()
        self.commit()
        snapshot = self.refresh()
        if len(snapshot.segments) < 2 and not snapshot.state.tombstones:
            return
        ids: list[str] = []
        parts = []
        for number, segment in snapshot.segments.items():
            live = np.delete(np.arange(segment.rows), snapshot.deleted(number))
            ids += segment.ids(live)
            parts.append(segment.encoding(live))
        order = sorted(range(len(ids)), key=ids.__getitem__)
        ids = [ids[i] for i in order]
        if ids:
            self._store.write_segment(snapshot.state.commit + 1, ids, stack(parts)[order])
        with self._mutex:
            self._open_manifest().compact(ids)
            self._store.sweep(self.refresh().segments)

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: Leg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query.

        Best first, equal scores by id ascending. Scores are float64, the exact products of the
        stored float32 values added up. With a filter, only documents that it chooses count; see
        `indexer.filters`.

        Raises:
            FilterSyntaxError: The filter cannot be read.
            UnsupportedError: The index or the queries lack the leg.
            ValueError: k is below 1, or there is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if leg not in get_args(Leg):
            raise ValueError(f"no leg is called {leg!r}; there are {', '.join(get_args(Leg))}")
        snapshot, left_out = self._choose(filter)
        widths, given = snapshot.state.widths, widths_of(queries)
        if widths and leg not in widths:
            raise UnsupportedError(f"{self.directory} has no {leg} leg")
        if leg not in given:
            raise UnsupportedError(f"the queries have no {leg} leg")
        if widths:
            self._check_width(leg, widths[leg], given[leg])
        results = []
        for query in queries:
            found = [
                hit
                for number, segment in snapshot.segments.items()
                for hit in segment.top(query, k, leg, left_out[number])
            ]
            found = sorted(found, key=lambda hit: (-hit[0], hit[1]))[:k]
            scores = np.array([score for score, _ in found])
            results.append(Results([name for _, name in found], scores))
        return results

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors, in the order of the ids.

        Raises:
            KeyError: The index has no such id.
        """
        with self._mutex:
            snapshot = self._snapshot or self.refresh()
            found = self._open_manifest().find(ids)
            if not found.keys() >= set(ids):
                snapshot = self.refresh()
                found = self._open_manifest().find(ids)
        rows: dict[int, list[int]] = {}
        positions: dict[int, list[int]] = {}
        for position, name in enumerate(ids):
            if name not in found:
                raise KeyError(name)
            place = found[name][1]
            rows.setdefault(place.segment, []).append(place.row)
            positions.setdefault(place.segment, []).append(position)
        if not rows:
            widths = snapshot.state.widths or {"lexical": len(self.vocabulary)}
            return Fetched([], no_rows(widths))
        parts = [snapshot.segments[number].encoding(np.array(rows[number])) for number in rows]
        order = np.argsort(np.concatenate([positions[number] for number in rows]))
        return Fetched([found[name][0] for name in ids], stack(parts)[order])

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that the index has, staged ones included."""
        with self._mutex:
            self.refresh()
            found = self._open_manifest().fingerprints(ids)
        staged = self._staging.documents
        found = {name: value for name, value in found.items() if name not in self._staging.deleted}
        return found | {name: staged[name].fingerprint for name in ids if name in staged}

    def count(self) -> int:
        """Return the number of searchable documents."""
        state = self.refresh().state
        return sum(state.segments.values()) - sum(map(len, state.tombstones.values()))

    def info(self) -> dict[str, Any]:
        """Describe the index: counts, size in bytes, vocabulary, model and versions."""
        snapshot, documents = self.refresh(), self.count()
        state = snapshot.state
        words = sum(s.active_words(snapshot.deleted(n)) for n, s in snapshot.segments.items())
        return {
            "engine": "embedded",
            "documents": documents,
            "segments": len(state.segments),
            "deleted_rows": sum(map(len, state.tombstones.values())),
            "bytes": self._store.size(),
            "mean_active_words": words / documents if documents else 0.0,
            "legs": state.widths,
            "vocabulary_size": len(self.vocabulary),
            "vocabulary_sha256": self.vocabulary.sha256,
            "model": self.model,
            "commit": state.commit,
            "format_version": FORMAT_VERSION,
            "writer_version": state.writer_version,
        }

    def close(self) -> None:
        """Give up files and the lock. What is staged and not committed is dropped."""
        with self._mutex:
            self._staging, self._snapshot, self._chosen = Staging(), None, None
            if self._manifest is not None:
                self._manifest.close()
                self._manifest = None
            self._store.unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def refresh(self) -> _Snapshot:
        """Move to the newest commit."""
        with self._mutex:
            manifest = self._open_manifest()
            while self._snapshot is None or manifest.refresh() != self._snapshot.state.commit:
                state = manifest.state()
                try:
                    self._snapshot = self._load(state)
                except IndexCorruptError:
                    # A writer may have compacted meanwhile, and removed the files.
                    if manifest.refresh() == state.commit:
                        self._snapshot = None
                        raise
            return self._snapshot

    def _choose(self, filter: str | None) -> tuple[_Snapshot, dict[int, np.ndarray]]:  # noqa: A002
        """Move to the newest commit; return it, and the rows to leave out of each segment."""
        with self._mutex:  # the manifest must not move between the two
            snapshot = self.refresh()
            if filter is None:
                return snapshot, {number: snapshot.deleted(number) for number in snapshot.segments}
            key = (snapshot.state.commit, filter)
            if self._chosen is None or self._chosen[0] != key:
                parsed, segments = Filter.parse(filter), snapshot.state.segments
                chosen = self._open_manifest().select(parsed, segments)
                self._chosen = key, {n: np.flatnonzero(~mask) for n, mask in chosen.items()}
            return snapshot, self._chosen[1]

    def _load(self, state: State) -> _Snapshot:
        known = {} if self._snapshot is None else self._snapshot.segments
        segments = {
            number: known.get(number) or self._store.segment(number, rows, state.widths)
            for number, rows in state.segments.items()
        }
        if state.vocabulary_sha256 not in ("", self.vocabulary.sha256):
            self.vocabulary = self._store.load_vocabulary(state.vocabulary_sha256)
        return _Snapshot(state, segments)

    def _lock(self) -> None:
        """Become the writer, if this index is not that yet."""
        with self._mutex:
            self._open_manifest()
            if self._store.lock():
                self._open_manifest().close()
                self._manifest = self._store.manifest(writable=True)
                self._store.sweep(self.refresh().segments)

    def _open_manifest(self) -> Manifest:
        if self._manifest is None:
            raise ValueError("the index is closed")
        return self._manifest

    def _check_width(self, leg: str, expected: int, width: int) -> None:
        if width != expected:
            raise VocabularyMismatchError(
                f"{self.directory}: {leg} has {expected} columns in the index, {width} here"
            )
