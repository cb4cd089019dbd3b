"""The Lucene engine: an impact index that Anserini, Pyserini and Luke can open."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from scipy import sparse

from indexer.base import Document, Fetched, Leg, Results
from indexer.embedded.staging import Staging, no_rows, widths_of
from indexer.filters import Filter
from indexer.impacts import ImpactQuantizer
from indexer.lucene.accuracy import SAMPLED_ROWS, accuracy, spread
from indexer.lucene.fields import FIELD_OF, impact_terms, unpack
from indexer.lucene.jvm import java_class, java_errors, start_java
from indexer.lucene.reader import Snapshot, escaped
from indexer.lucene.scoring import LuceneExplanation, error_bound, explained, query_weights
from indexer.lucene.selection import selection
from indexer.lucene.state import FORMAT_VERSION, State, program_version
from indexer.lucene.store import Store
from indexer.lucene.writer import Writer
from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary

__all__ = ["LuceneIndex"]

_MOST_CLAUSES = 2**31 - 1  # Lucene refuses queries of over 1,024 words else


class LuceneIndex:
    """Keep an index of Lucene in a directory of the local disk.

    Any number of readers and one writer may have it open. A reader answers from one whole commit,
    and moves to the newest at `search`, `count` and `info`; `fetch` answers from the commit of
    the last search. Several threads may search, also while one thread writes.

    Documents' weights become impacts of 8 bits when they are committed, by a scale that the first
    commit fixes; queries' become whole numbers so great that sums are exact in Lucene's float32.
    Scores are these sums in the units of the dot product; `bound` says how far from it they can
    be. The exact rows are stored too, with the dense ones, which Lucene does not search here.

    An index that Anserini's own indexer built can be searched by its words, and not changed. It
    names no vocabulary: give one, or save it there as ``vocabulary.json``.

    Args:
        directory: Where the index lies.
        create: Make the index if there is none, and lock it for writing.
        vocabulary: The terms of the lexical columns. Without one, a new index names its terms by
            their column numbers.
        model: The name of the model that the vectors come from; kept by a new index.
        quantizer: How the words' weights become integers, for an index that has none yet, or
            became them, for one of Anserini's. Without it, the first commit decides, and
            Anserini's integers count as they are.

    Raises:
        EngineUnavailableError: There is no Java of version 21 or newer.
        IndexCorruptError: There is no index, or it is damaged.
        IndexLockedError: ``create`` is set and another writer has the index.
        IndexVersionError: A newer program wrote the index.
        OptionalDependencyError: The extra ``pyserini`` is not installed.
        UnsupportedError: ``create`` is set and another program built the index.
        VocabularyMismatchError: The index has another vocabulary.
    """

    def __init__(
        self,
        directory: str | Path,
        create: bool = False,
        vocabulary: Vocabulary | None = None,
        model: str | None = None,
        quantizer: ImpactQuantizer | None = None,
    ) -> None:
        self.directory: Path | None = Path(directory)
        self.vocabulary = Vocabulary(())
        self.model: str | None = None
        self._path = Path(directory)
        self._quantizer = quantizer
        self._store = Store(self._path)
        self._staging = Staging()
        self._mutex = threading.RLock()
        self._writer: Writer | None = None
        self._snapshot: Snapshot | None = None
        self._closed = False
        self._terms: dict[Leg, tuple[list[str], list[str], Sequence[str]]] = {}
        # Of the last filter: a search over several legs asks with the same one for each.
        self._chosen: tuple[tuple[int, str], Any] | None = None
        try:
            self._open(create, vocabulary, model)
        except BaseException:
            self.close()
            raise

    def _open(self, create: bool, vocabulary: Vocabulary | None, model: str | None) -> None:
        if create:
            self._store.make()
        else:
            self._store.check()
        start_java()
        java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MOST_CLAUSES)
        if create:
            if self._store.exists:
                self._check_ours(self._refresh())
            self._writer = Writer(self._store)
            if not self._store.exists:
                sha256 = "" if vocabulary is None else vocabulary.sha256
                if vocabulary is not None:
                    self._store.save_vocabulary(vocabulary)
                self._writer.commit(State(model, sha256, writer_version=program_version()))
        state = self._refresh().state
        if state is None:
            self.vocabulary = vocabulary or self._store.load_vocabulary() or self.vocabulary
            return
        self.model = state.model
        if vocabulary is not None and not len(self.vocabulary):
            self.vocabulary = vocabulary
        elif vocabulary is not None and vocabulary != self.vocabulary:
            raise VocabularyMismatchError(
                f"{self._path} was made with {self.vocabulary}, not with {vocabulary}"
            )

    def add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage documents; one whose id is known replaces the old one.

        Dense vectors are stored for `fetch`, and not searched. Vectors without patches may share
        an index with vectors that have them: their words are stored with patch -1.

        Raises:
            IndexLockedError: Another writer has the index.
            InputError: An id occurs twice in this call.
            UnsupportedError: The legs are not those of the index, or Anserini built it.
            ValueError: The number of documents is not the number of vectors.
            VocabularyMismatchError: A leg has another width than in the index.
        """
        if len(documents) != len(encoding):
            raise ValueError(f"{len(documents)} documents with {len(encoding)} vectors")
        with self._mutex:
            self._lock()
            widths = widths_of(encoding)
            expected = dict(self._state().widths) or self._staging.widths or widths
            if len(self.vocabulary):
                expected = {**expected, "lexical": len(self.vocabulary)}
            for leg in expected.keys() & widths.keys():
                self._check_width(leg, expected[leg], widths[leg])
            if expected.keys() != widths.keys():
                have, come = ", ".join(expected), ", ".join(widths)
                raise UnsupportedError(f"the index keeps {have}; the new vectors have {come}")
            if not documents:
                return
            vocabulary = self.vocabulary
            if not len(vocabulary):
                vocabulary = Vocabulary(map(str, range(widths["lexical"])))
            impact_terms(vocabulary)  # before anything is staged: Lucene may not take them
            self._staging.add(documents, encoding)
            self.vocabulary = vocabulary

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions. Return how many of the ids were there.

        Raises:
            IndexLockedError: Another writer has the index.
            UnsupportedError: Anserini built the index.
        """
        with self._mutex:
            self._lock()
            with java_errors(self._path):
                committed = self._refresh().places(ids).keys() - self._staging.deleted
            count = 0
            for name in set(ids):
                count += self._staging.discard(name) or name in committed
            self._staging.deleted |= committed
            return count

    def commit(self) -> None:
        """Make all that is staged durable and visible, or nothing of it."""
        with self._mutex:
            if not self._staging:
                return
            writer, state = self._lock(), self._state()
            if self._staging.documents and state.vocabulary_sha256 != self.vocabulary.sha256:
                self._store.save_vocabulary(self.vocabulary)
                state = replace(state, vocabulary_sha256=self.vocabulary.sha256)
            removed = self._staging.deleted | self._staging.documents.keys()
            with self._undoing(writer):
                if self._refresh().rows:
                    writer.delete(removed)
                if self._staging.documents:
                    documents, encoding = self._staging.rows()
                    given = {} if self._quantizer is None else {"lexical": self._quantizer}
                    state = state.with_rows(encoding, given)
                    writer.add(documents, encoding, state, impact_terms(self.vocabulary))
                writer.commit(state)
            self._staging = Staging()
            self._refresh()

    def compact(self) -> None:
        """Commit, then merge all segments into one and give up the space of deleted rows.

        Raises:
            IndexLockedError: Another writer has the index.
            UnsupportedError: Anserini built the index.
        """
        with self._mutex:
            writer = self._lock()
            self.commit()
            snapshot = self._refresh()
            if snapshot.segments < 2 and snapshot.count == snapshot.rows:
                return
            with self._undoing(writer):
                writer.merge(self._state())
            self._refresh()

    def verify(self) -> list[str]:
        """Read all files against their checksums. Return a line for each damaged segment."""
        with self._held() as snapshot:
            return list(snapshot.damage())

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: Leg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query.

        Best first by integer scores, equal ones by id ascending. With a filter, only documents
        that it chooses count; see `indexer.filters`.

        Raises:
            FilterSyntaxError: The filter cannot be read.
            UnsupportedError: The leg is ``dense``, the index or the queries lack it, the index
                names no vocabulary or keeps no metadata, or a query has over 32,896 words.
            ValueError: k is below 1, or there is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        parsed = None if filter is None else Filter.parse(filter)
        with self._held() as snapshot, java_errors(self._path):
            rows, step = self._asked(snapshot, queries, leg), self._step(snapshot, leg)
            chosen = None
            if filter is not None and parsed is not None:
                chosen = self._choose(snapshot, filter, parsed)
            return [
                self._answer(snapshot, rows[[i]], k, leg, chosen, step) for i in range(len(queries))
            ]

    def _answer(
        self, snapshot: Snapshot, row: sparse.csr_array, k: int, leg: Leg, chosen: Any, step: float
    ) -> Results:
        if not row.nnz or not snapshot.count:
            return Results([], np.empty(0))
        weights, scale = query_weights(row)
        hits = snapshot.top(self._query(snapshot, row, leg, weights), row.nnz, k, chosen)
        scores = np.array([score for _, score in hits], np.float64)
        return Results([name for name, _ in hits], scores * (step / scale))

    def bound(self, queries: Encoding, leg: Leg = "lexical") -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64.

        Raises:
            UnsupportedError: As `search`.
            ValueError: There is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        with self._held() as snapshot:
            rows = self._asked(snapshot, queries, leg)
            quantizer = self._scale(snapshot, leg)
            return np.array([error_bound(rows[[i]], quantizer) for i in range(len(queries))])

    def explain(self, query: Encoding, id: str, leg: Leg = "lexical") -> LuceneExplanation:  # noqa: A002
        """Return one document's score as Lucene explains it, with what each term adds.

        Args:
            query: One row.
            id: The document.
            leg: The leg to score by.

        Raises:
            KeyError: The index has no such id.
            UnsupportedError: As `search`.
            ValueError: There is no leg of that name, or not one row.
            VocabularyMismatchError: The leg has another width in the index.
        """
        if len(query) != 1:
            raise ValueError(f"one query is explained, not {len(query)}")
        with self._held() as snapshot, java_errors(self._path):
            row, step = self._asked(snapshot, query, leg), self._step(snapshot, leg)
            number, _ = snapshot.places([id])[id]
            if not row.nnz:
                return LuceneExplanation(id, 0.0, (), "")
            weights, scale = query_weights(row)
            tree, text = snapshot.explain(self._query(snapshot, row, leg, weights), number)
            indexed, _, names = self._words(leg, row.shape[1])
            columns = row.indices.tolist()
            integers = dict(zip((indexed[c] for c in columns), weights.tolist(), strict=True))
            written = {indexed[c]: names[c] for c in columns}
            return explained(id, tree, text, integers, written, (1 / scale, step))

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors, in the order of the ids.

        Raises:
            KeyError: The index has no such id.
            UnsupportedError: Anserini built the index: it keeps no vectors.
        """
        with self._held(newest=False) as snapshot, java_errors(self._path):
            if snapshot.places(ids).keys() >= set(ids):
                return self._fetch(snapshot, ids)
        with self._held() as snapshot, java_errors(self._path):
            return self._fetch(snapshot, ids)

    def _fetch(self, snapshot: Snapshot, ids: Sequence[str]) -> Fetched:
        state, places = self._check_ours(snapshot), snapshot.places(ids)
        for name in ids:
            if name not in places:
                raise KeyError(name)
        if not ids:
            return Fetched([], no_rows(dict(state.widths) or {"lexical": len(self.vocabulary)}))
        stored = [snapshot.stored(*places[name]) for name in ids]
        documents, rows = zip(*stored, strict=True)
        return Fetched(list(documents), unpack(rows, state.widths))

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that the index has, staged ones included."""
        with self._mutex:
            with self._held() as snapshot, java_errors(self._path):
                found = {name: place[1] for name, place in snapshot.places(ids).items()}
            return self._staging.fingerprints(found, ids)

    def count(self) -> int:
        """Return the number of searchable documents."""
        return self._refresh().count

    def info(self) -> dict[str, Any]:
        """Describe the index: counts, size in bytes, vocabulary, model, versions and accuracy.

        Of the accuracy see `indexer.lucene.accuracy`. ``legs`` are those that are kept;
        ``searched_legs`` are those that can be searched.
        """
        with self._held() as snapshot, java_errors(self._path):
            state = snapshot.state
            widths = dict(state.widths) if state else {"lexical": len(self.vocabulary)}
            facts: dict[str, Any] = {
                "engine": "lucene",
                "documents": snapshot.count,
                "segments": snapshot.segments,
                "deleted_rows": snapshot.rows - snapshot.count,
                "bytes": self._store.size(),
                "mean_active_words": snapshot.mean_words(),  # of deleted rows too
                "legs": widths,
                "searched_legs": [leg for leg in widths if leg in FIELD_OF],
            }
            if state is not None:
                facts["quantization"] = self._accuracy(snapshot, state)
            return facts | {
                "vocabulary_size": len(self.vocabulary),
                "vocabulary_sha256": self.vocabulary.sha256,
                "model": self.model,
                "commit": snapshot.generation,
                "format_version": FORMAT_VERSION if state else None,
                "writer_version": state.writer_version if state else "not LexVLA",
                "lucene_version": str(
                    java_class("org.apache.lucene.util.Version").LATEST.toString()
                ),
            }

    def _accuracy(self, snapshot: Snapshot, state: State) -> dict[str, Any]:
        live = snapshot.live(spread(snapshot.rows, SAMPLED_ROWS))
        if not live:
            return {}
        sample = unpack([snapshot.vectors(number) for number in live], state.widths)
        rows = {"lexical": sample.lexical, "codes": sample.codes}
        return {leg: accuracy(kept, rows[leg]) for leg, kept in state.legs.items()}

    def close(self) -> None:
        """Give up files and the lock. What is staged and not committed is dropped."""
        with self._mutex:
            self._closed = True
            self._staging, self._chosen = Staging(), None
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            if self._snapshot is not None:
                self._snapshot.close()
                self._snapshot = None
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refresh(self) -> Snapshot:
        """Move to the newest commit."""
        with self._mutex:
            if self._closed:
                raise ValueError("the index is closed")
            if self._snapshot is None:
                self._snapshot = self._store.open()
            else:
                newer = self._store.newer(self._snapshot)
                if newer is not self._snapshot:
                    self._snapshot.close()
                    self._snapshot = newer
            state = self._snapshot.state
            if state is not None and state.vocabulary_sha256 not in ("", self.vocabulary.sha256):
                self.vocabulary = (
                    self._store.load_vocabulary(state.vocabulary_sha256) or self.vocabulary
                )
            return self._snapshot

    @contextmanager
    def _held(self, newest: bool = True) -> Iterator[Snapshot]:
        """Keep a commit open for a while: another thread may move to a newer one."""
        with self._mutex:
            snapshot = self._snapshot
            if newest or snapshot is None:
                snapshot = self._refresh()
            held = snapshot.held()
            held.__enter__()
        try:
            yield snapshot
        finally:
            held.__exit__(None, None, None)

    @contextmanager
    def _undoing(self, writer: Writer) -> Iterator[None]:
        """Undo what a writer has begun if anything fails, so that it can be tried again."""
        try:
            with java_errors(self._path):
                yield
        except BaseException:
            self._writer = None
            writer.close()
            raise

    def _lock(self) -> Writer:
        """Become the writer, if this index is not that yet."""
        if self._writer is None:
            self._check_ours(self._refresh())
            self._writer = Writer(self._store)
            self._refresh()
        return self._writer

    def _state(self) -> State:
        return self._check_ours(self._refresh())

    def _check_ours(self, snapshot: Snapshot) -> State:
        if snapshot.state is None:
            rule = "another program built this index: it can be searched by its words only"
            raise UnsupportedError(f"{self._path}: {rule}")
        return snapshot.state

    def _asked(self, snapshot: Snapshot, queries: Encoding, leg: Leg) -> sparse.csr_array:
        """Return the queries' rows of a leg, if the index can be asked for it."""
        if leg not in get_args(Leg):
            raise ValueError(f"no leg is called {leg!r}; there are {', '.join(get_args(Leg))}")
        if leg not in FIELD_OF:
            rule = "Lucene indexes store dense vectors and do not search them"
            raise UnsupportedError(f"{rule}: use the legs {' and '.join(FIELD_OF)}")
        given, state = widths_of(queries), snapshot.state
        if state is None and not len(self.vocabulary):
            get = "give one, or save it there as vocabulary.json"
            raise UnsupportedError(f"{self._path} names no vocabulary; {get}")
        widths = {"lexical": len(self.vocabulary)} if state is None else state.widths
        if widths and leg not in widths:
            raise UnsupportedError(f"{self._path} has no {leg} leg")
        if leg not in given:
            raise UnsupportedError(f"the queries have no {leg} leg")
        if widths:
            self._check_width(leg, widths[leg], given[leg])
        return queries.lexical if leg == "lexical" else queries.codes

    def _scale(self, snapshot: Snapshot, leg: Leg) -> ImpactQuantizer | None:
        if snapshot.state is None:
            return self._quantizer
        kept = snapshot.state.legs.get(leg)
        return None if kept is None else kept.quantizer

    def _step(self, snapshot: Snapshot, leg: Leg) -> float:
        quantizer = self._scale(snapshot, leg)
        return 1.0 if quantizer is None else quantizer.step

    def _query(
        self, snapshot: Snapshot, row: sparse.csr_array, leg: Leg, weights: np.ndarray
    ) -> Any:
        written = self._words(leg, row.shape[1])[1]
        terms = [written[column] for column in row.indices.tolist()]
        return snapshot.query(FIELD_OF[leg], terms, weights.tolist())

    def _words(self, leg: Leg, width: int) -> tuple[list[str], list[str], Sequence[str]]:
        """Return the terms of a leg's columns: as indexed, as queries write them, and by name."""
        names = self.vocabulary.terms if leg == "lexical" else tuple(map(str, range(width)))
        known = self._terms.get(leg)
        if known is None or (known[2] is not names and known[2] != names):
            indexed = impact_terms(self.vocabulary) if leg == "lexical" else list(names)
            known = indexed, [escaped(term) for term in indexed], names
            self._terms[leg] = known
        return known

    def _choose(self, snapshot: Snapshot, text: str, parsed: Filter) -> Any:
        """Return a filter as a query."""
        self._check_ours(snapshot)
        key = (snapshot.generation, text)
        chosen = self._chosen
        if chosen is None or chosen[0] != key:

            def matching(part: Filter) -> list[str]:
                places = snapshot.every_place().items()
                return [name for name, place in places if part.matches(snapshot.document(*place))]

            chosen = key, selection(parsed, matching)
            self._chosen = chosen
        return chosen[1]

    def _check_width(self, leg: str, expected: int, width: int) -> None:
        if width != expected:
            raise VocabularyMismatchError(
                f"{self._path}: {leg} has {expected} columns in the index, {width} here"
            )
