"""The Lucene engine: an impact index that Anserini, Pyserini and Luke can open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Index
from lexvla_indexer.document import Document
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.legs import Leg, VectorLeg, check_terms
from lexvla_indexer.lucene.jvm import java_class, java_errors, start_java
from lexvla_indexer.lucene.layout import State, Store, impact_terms
from lexvla_indexer.lucene.reader import Reader
from lexvla_indexer.lucene.writer import Writer

__all__ = ["LuceneIndex"]

T = TypeVar("T")

_MOST_CLAUSES = 2**31 - 1  # by default, Lucene refuses queries of over 1,024 words


class LuceneIndex(Index):
    """Keep a Lucene index in a directory of the local disk.

    Any number of readers and one writer may have it open. A reader answers from one whole commit,
    and moves to the newest at `search`, `count` and `info`; `fetch` and `vectors` answer from the
    commit of the last search. Several threads may search, even while one thread writes.

    A commit turns documents' weights into impacts of 8 bits, on a scale that the first commit
    fixes; queries' weights become integers so large that sums are exact in Lucene's float32.
    Scores are these sums in the units of the dot product; `bound` says how far from it they can
    be. Queries may have 32,896 words. The exact rows are stored too, including dense vectors,
    which Lucene does not search here.

    An index that Anserini's own indexer built can be searched by its words, but not changed, and
    its documents are bare ids. It names no vocabulary and no scale: pass them, or put
    ``vocabulary.json`` and ``quantization.json`` there, which `lexvla encode` writes.

    Arguments and errors are those of `lexvla_indexer.open_index`; ``create`` raises
    UnsupportedError for an index of another program. Without a vocabulary, a new index names its
    terms by their column numbers. ``quantizer`` says how the words' weights become integers in an
    index that has none yet, or became them in one of Anserini's. By default the first commit
    decides, and Anserini's integers count as they are, or as ``quantization.json`` says.
    """

    def __init__(
        self,
        directory: str | Path,
        create: bool = False,
        vocabulary: Vocabulary | None = None,
        model: str | None = None,
        quantizer: ImpactQuantizer | None = None,
    ) -> None:
        super().__init__(Path(directory))
        self._quantizer = quantizer
        self._store = Store(Path(directory))
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        with self._opening():
            if create:
                self._store.make()
            else:
                self._store.check()
            start_java()
            java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MOST_CLAUSES)
            if create:
                if self._store.exists:
                    self._refresh().ours()
                self._writer = Writer(self._store, self._quantizer)
                if not self._store.exists:
                    self._writer.begin(State(model), vocabulary)
            kept = self._refresh().state
            if kept is None:
                self.is_writable = self.has_rows = False
                self.vocabulary = vocabulary or self._store.load_vocabulary() or self.vocabulary
                self._quantizer = self._quantizer or self._store.load_quantizers().get("lexical")
            else:
                self.model = kept.model
                self._agree(vocabulary)

    def commit(self) -> None:
        """Make everything staged durable and visible, or none of it."""
        with self._writing:
            if self._staging:
                reader = self._refresh()
                writer = self._own_writer()
                writer.commit(self._staging, reader.ours(), self.vocabulary, not reader.rows)
                self._refresh()

    def compact(self) -> None:
        """Commit, then merge all segments into one and free the space of deleted rows.

        Raises:
            IndexLockedError: Another writer has the index.
            UnsupportedError: Anserini built the index.
        """
        with self._writing:
            writer = self._own_writer()
            self.commit()
            reader = self._refresh()
            if reader.segments > 1 or reader.count() < reader.rows:
                writer.merge(reader.ours())
                self._refresh()

    def verify(self) -> list[str]:
        """Read all files against their checksums. Return a line for each damaged segment."""
        return self._ask(lambda reader: list(reader.damage()))

    def bound(self, queries: Encoding, leg: VectorLeg = "lexical") -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64.

        Raises as `search` does.
        """
        return self._ask(lambda reader: reader.bound(queries, leg))

    def legs(self) -> tuple[Leg, ...]:
        """Return the legs that it can be searched by: words, codes and text."""
        if self._refresh().state is None:
            return ("lexical",)
        return tuple(leg for leg in super().legs() if leg != "dense")

    def _ask(self, ask: Callable[[Reader], T], newest: bool = True) -> T:
        with self._writing:
            reader = self._reader
            if newest or reader is None:
                reader = self._refresh()
            reader.vocabulary, reader.quantizer = self.vocabulary, self._quantizer
            reader.hold()  # another thread may move to a newer commit meanwhile
        try:
            with java_errors(self._store.path):
                return ask(reader)
        finally:
            reader.close()

    def _refresh(self) -> Reader:
        """Move to the newest commit."""
        with self._writing:
            self._check_open()
            if self._reader is None:
                self._reader = Reader.open(self._store)
            else:
                newer = self._reader.newer()
                if newer is not self._reader:
                    self._reader.close()
                    self._reader = newer
            state = self._reader.state
            if state is not None and state.vocabulary_sha256 not in ("", self.vocabulary.sha256):
                words = self._store.load_vocabulary(state.vocabulary_sha256)
                self.vocabulary = words or self.vocabulary
            return self._reader

    def _fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        return self._ask(lambda reader: reader.fingerprints(ids))

    def _widths(self) -> Mapping[str, int]:
        return self._refresh().ours().widths

    def _check_storable(
        self, documents: Sequence[Document], encoding: Encoding, vocabulary: Vocabulary
    ) -> None:
        check_terms(impact_terms(vocabulary), "Lucene")

    def _own_writer(self) -> Writer:
        self._check_open()
        if self._writer is None:
            self._refresh().ours()
            self._writer = Writer(self._store, self._quantizer)
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._store.close()
