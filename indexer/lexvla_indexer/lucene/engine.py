"""The Lucene engine: an impact index that Anserini, Pyserini and Luke can open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnknownDocumentError, UnsupportedError, VocabularyMismatchError
from lexvla.version import program_version
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Fetched, Results
from lexvla_indexer.document import Document
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.legs import Leg, check_added, check_asked, no_rows, widths_of
from lexvla_indexer.lucene.answers import Answers, Words
from lexvla_indexer.lucene.changes import Changes
from lexvla_indexer.lucene.facts import facts
from lexvla_indexer.lucene.fields import FIELD_OF, unpack
from lexvla_indexer.lucene.jvm import java_class, java_errors, start_java
from lexvla_indexer.lucene.reader import Snapshot
from lexvla_indexer.lucene.scoring import LuceneExplanation
from lexvla_indexer.lucene.state import State
from lexvla_indexer.lucene.store import Store

__all__ = ["LuceneIndex"]

T = TypeVar("T")

_MOST_CLAUSES = 2**31 - 1  # Lucene refuses queries of over 1,024 words else


class LuceneIndex:
    """Keep an index of Lucene in a directory of the local disk.

    Any number of readers and one writer may have it open. A reader answers from one whole commit,
    and moves to the newest at `search`, `count` and `info`; `fetch` and `vectors` answer from the
    commit of the last search. Several threads may search, also while one thread writes.

    Documents' weights become impacts of 8 bits when they are committed, by a scale that the first
    commit fixes; queries' become whole numbers so great that sums are exact in Lucene's float32.
    Scores are these sums in the units of the dot product; `bound` says how far from it they can
    be. The exact rows are stored too, with the dense ones, which Lucene does not search here.

    An index that Anserini's own indexer built can be searched by its words, and not changed. It
    names no vocabulary and no scale: give them, or put ``vocabulary.json`` and
    ``quantization.json`` there, which `lexvla encode` writes.

    Args:
        directory: Where the index lies.
        create: Make the index if there is none, and lock it for writing.
        vocabulary: The terms of the lexical columns. Without one, a new index names its terms by
            their column numbers.
        model: The name of the model that the vectors come from; kept by a new index.
        quantizer: How the words' weights become integers, for an index that has none yet, or
            became them, for one of Anserini's. Without it, the first commit decides, and
            Anserini's integers count as they are, or as ``quantization.json`` says.

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
        self._mutex = threading.RLock()
        self._changes: Changes | None = None
        self._snapshot: Snapshot | None = None
        self._closed = False
        self._known: dict[Leg, Words] = {}
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
            self._changes = Changes(self._store, self._quantizer)
            if not self._store.exists:
                state = State(model, writer_version=program_version())
                self._changes.begin(state, vocabulary)
        kept = self._refresh().state
        if kept is None:
            self.vocabulary = vocabulary or self._store.load_vocabulary() or self.vocabulary
            self._quantizer = self._quantizer or self._store.load_quantizers().get("lexical")
            return
        self.model = kept.model
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
            changes = self._lock()
            kept = self._state().widths or changes.staging.widths
            check_added(encoding, kept, self.vocabulary, self._path)
            if not documents:
                return
            vocabulary = self.vocabulary
            if not len(vocabulary):
                vocabulary = Vocabulary(map(str, range(encoding.lexical.shape[1])))
            changes.add(documents, encoding, vocabulary)
            self.vocabulary = vocabulary

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions. Return how many of the ids were there.

        Raises:
            IndexLockedError: Another writer has the index.
            UnsupportedError: Anserini built the index.
        """
        with self._mutex:
            changes = self._lock()
            with java_errors(self._path):
                return changes.delete(ids, self._refresh())

    def commit(self) -> None:
        """Make all that is staged durable and visible, or nothing of it."""
        with self._mutex:
            changes = self._changes
            if changes is not None and changes.staging:
                changes.commit(self._refresh(), self._state(), self.vocabulary)
                self._refresh()

    def compact(self) -> None:
        """Commit, then merge all segments into one and give up the space of deleted rows.

        Raises:
            IndexLockedError: Another writer has the index.
            UnsupportedError: Anserini built the index.
        """
        with self._mutex:
            changes = self._lock()
            self.commit()
            snapshot = self._refresh()
            if snapshot.segments > 1 or snapshot.count < snapshot.rows:
                changes.merge(self._state())
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
        that it chooses count; see `lexvla_indexer.filters`.

        Raises:
            FilterSyntaxError: The filter cannot be read.
            UnsupportedError: The leg is ``dense``, the index or the queries lack it, the index
                names no vocabulary or keeps no metadata, or a query has over 32,896 words.
            ValueError: k is below 1, or there is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        with self._held() as snapshot, java_errors(self._path):
            answers, rows = self._asked(snapshot, queries, leg)
            chosen = None
            if filter is not None:
                self._check_ours(snapshot)
                chosen = snapshot.choose(filter)
            return [answers.top(rows[[i]], k, chosen) for i in range(len(queries))]

    def bound(self, queries: Encoding, leg: Leg = "lexical") -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64.

        Raises:
            UnsupportedError: As `search`.
            ValueError: There is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        with self._held() as snapshot:
            answers, rows = self._asked(snapshot, queries, leg)
            return np.array([answers.bound(rows[[i]]) for i in range(len(queries))])

    def explain(self, query: Encoding, id: str, leg: Leg = "lexical") -> LuceneExplanation:  # noqa: A002
        """Return a document's score for one query as Lucene explains it, term by term.

        Raises:
            UnknownDocumentError: The index has no such id.
            UnsupportedError: As `search`.
            ValueError: There is no leg of that name, or not one row.
            VocabularyMismatchError: The leg has another width in the index.
        """
        if len(query) != 1:
            raise ValueError(f"one query is explained, not {len(query)}")
        with self._held() as snapshot, java_errors(self._path):
            answers, rows = self._asked(snapshot, query, leg)
            return answers.explain(rows, id)

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors, in the order of the ids.

        Raises:
            UnknownDocumentError: The index has no such id.
            UnsupportedError: Anserini built the index: it keeps no vectors.
        """
        return self._look_up(lambda snapshot: self._fetch(snapshot, ids))

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return documents' stored vectors alone, in the order of the ids.

        Raises:
            UnknownDocumentError: The index has no such id.
            UnsupportedError: As `fetch`.
        """
        return self._look_up(lambda at: self._rows(self._check_ours(at), at.vectors_of(ids)))

    def _look_up(self, ask: Callable[[Snapshot], T]) -> T:
        try:
            with self._held(newest=False) as snapshot, java_errors(self._path):
                return ask(snapshot)
        except UnknownDocumentError:
            with self._held() as snapshot, java_errors(self._path):
                return ask(snapshot)

    def _fetch(self, snapshot: Snapshot, ids: Sequence[str]) -> Fetched:
        state, stored = self._check_ours(snapshot), snapshot.stored(ids)
        return Fetched([each for each, _ in stored], self._rows(state, [row for _, row in stored]))

    def _rows(self, state: State, packed: Sequence[bytes]) -> Encoding:
        if packed:
            return unpack(packed, state.widths)
        return no_rows(dict(state.widths) or {"lexical": len(self.vocabulary)})

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that the index has, staged ones included."""
        with self._mutex:
            with self._held() as snapshot, java_errors(self._path):
                found = {name: place[1] for name, place in snapshot.places(ids).items()}
            changes = self._changes
            return found if changes is None else changes.staging.fingerprints(found, ids)

    def count(self) -> int:
        """Return the number of searchable documents."""
        return self._refresh().count

    def info(self) -> dict[str, Any]:
        """Describe the index: counts, size in bytes, vocabulary, model, versions and accuracy.

        Of the accuracy see `lexvla_indexer.lucene.facts`. ``legs`` are those that are kept, and
        ``searched_legs`` those of them that can be searched.
        """
        with self._held() as snapshot, java_errors(self._path):
            return facts(snapshot, self._store, self.vocabulary, self._quantizer)

    def close(self) -> None:
        """Give up files and the lock. What is staged and not committed is dropped."""
        with self._mutex:
            self._closed = True
            if self._changes is not None:
                self._changes.close()
                self._changes = None
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
                newer_words = self._store.load_vocabulary(state.vocabulary_sha256)
                self.vocabulary = newer_words or self.vocabulary
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

    def _lock(self) -> Changes:
        """Become the writer, if this index is not that yet."""
        if self._changes is None:
            self._check_ours(self._refresh())
            self._changes = Changes(self._store, self._quantizer)
        return self._changes

    def _state(self) -> State:
        return self._check_ours(self._refresh())

    def _check_ours(self, snapshot: Snapshot) -> State:
        if snapshot.state is None:
            rule = "another program built this index: it can be searched by its words only"
            raise UnsupportedError(f"{self._path}: {rule}")
        return snapshot.state

    def _asked(
        self, snapshot: Snapshot, queries: Encoding, leg: Leg
    ) -> tuple[Answers, sparse.csr_array]:
        """Return what answers by a leg, and the queries' rows of it, if it can be asked for."""
        if leg == "dense":
            rule = "Lucene indexes store dense vectors and do not search them"
            raise UnsupportedError(f"{rule}: use the legs {' and '.join(FIELD_OF)}")
        state = snapshot.state
        if state is None and not len(self.vocabulary):
            get = "give one, or save it there as vocabulary.json"
            raise UnsupportedError(f"{self._path} names no vocabulary; {get}")
        widths = {"lexical": len(self.vocabulary)} if state is None else state.widths
        check_asked(queries, leg, widths, self._path)
        quantizer, longest = self._quantizer, None
        if state is not None and leg in state.legs:
            quantizer, longest = state.legs[leg].quantizer, state.legs[leg].longest
        rows = queries.lexical if leg == "lexical" else queries.codes
        words = self._words(leg, widths_of(queries)[leg])
        return Answers(snapshot, leg, words, quantizer, longest), rows

    def _words(self, leg: Leg, width: int) -> Words:
        known = self._known.get(leg)
        if leg == "lexical" and (known is None or known.vocabulary is not self.vocabulary):
            known = Words(self.vocabulary)
        elif known is None or len(known.vocabulary) != width:
            known = Words(Vocabulary(map(str, range(width))))
        self._known[leg] = known
        return known
