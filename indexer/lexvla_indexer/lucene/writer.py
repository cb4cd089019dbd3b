"""Lucene's writer: documents into impacts, deletions, commits and merges."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import add

from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer.document import Document
from lexvla_indexer.lucene.fields import (
    END,
    ID,
    IMPACT,
    LuceneDocument,
    analyzer,
    pack,
)
from lexvla_indexer.lucene.jvm import java_class, java_errors
from lexvla_indexer.lucene.selection import any_of, conditions
from lexvla_indexer.lucene.state import KEY, State
from lexvla_indexer.lucene.store import Store

__all__ = ["Writer"]

_BUFFER_MIB = 128.0  # of new postings, until they are written as a segment
_INDEX = "org.apache.lucene.index."
_IMPACTS = [f"{IMPACT}{impact}" for impact in range(256)]


class Writer:
    """Lucene's writer, which holds the lock of the directory.

    Args:
        store: The directory.

    Raises:
        IndexCorruptError: The index is damaged.
        IndexLockedError: Another writer has the index.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        settings = java_class(f"{_INDEX}IndexWriterConfig")(
            analyzer(), signature="(Lorg/apache/lucene/analysis/Analyzer;)V"
        )
        similarity = java_class("io.anserini.search.similarity.ImpactSimilarity")
        settings.setSimilarity(similarity())
        settings.setRAMBufferSizeMB(_BUFFER_MIB)
        settings.setCommitOnClose(False)
        settings.setUseCompoundFile(False)
        with java_errors(store.path):
            self.java = java_class(f"{_INDEX}IndexWriter")(store.directory(), settings)

    def delete(self, ids: Collection[str]) -> None:
        """Delete documents, from what was added before too."""
        # One query for all; each term alone would have to cross over to Java.
        with java_errors(self._store.path):
            self.java.updateDocuments(
                any_of(ID, ids),
                java_class("java.util.ArrayList")(),
                signature="(Lorg/apache/lucene/search/Query;Ljava/lang/Iterable;)J",
            )

    def add(
        self,
        documents: Sequence[Document],
        encoding: Encoding,
        state: State,
        terms: Sequence[str],
    ) -> None:
        """Add documents.

        Args:
            documents: None of which is in the index.
            encoding: A row for each.
            state: Has the quantisers of the legs.
            terms: Those of the lexical columns, as they stand in the index.
        """
        lexical = _Texts(encoding.lexical, state, "lexical", terms)
        codes = None
        if encoding.codes is not None:
            codes = _Texts(
                encoding.codes, state, "codes", [str(i) for i in range(encoding.codes.shape[1])]
            )
        made = LuceneDocument(codes is not None)
        for row, (document, vectors) in enumerate(zip(documents, pack(encoding), strict=True)):
            shown = conditions(document)
            made.fill(document, lexical[row], codes[row] if codes else "", shown, vectors)
            self.java.addDocument(made.java)

    def commit(self, state: State) -> None:
        """Make all changes durable and visible, or none of them."""
        with java_errors(self._store.path):
            self._describe(state)
            self.java.commit()

    def merge(self, state: State) -> None:
        """Merge all segments into one, without the deleted rows."""
        with java_errors(self._store.path):
            self.java.forceMerge(1, signature="(I)V")
            self._describe(state)
            self.java.commit()
            self.java.deleteUnusedFiles()

    def _describe(self, state: State) -> None:
        data = java_class("java.util.HashMap")()
        data.put(KEY, state.dump())
        self.java.setLiveCommitData(data.entrySet(), signature="(Ljava/lang/Iterable;)V")

    def close(self) -> None:
        """Give up what is not committed, and the lock."""
        with java_errors(self._store.path):
            self.java.rollback()


class _Texts:
    """Write the rows of a leg as terms with impacts."""

    def __init__(
        self, matrix: sparse.csr_array, state: State, leg: str, terms: Sequence[str]
    ) -> None:
        self._terms = terms
        self._impacts = matrix
        if matrix.nnz:
            self._impacts = state.legs[leg].quantizer.quantize(matrix)

    def __getitem__(self, row: int) -> str:
        span = slice(*self._impacts.indptr[row : row + 2].tolist())
        words = map(self._terms.__getitem__, self._impacts.indices[span].tolist())
        impacts = map(_IMPACTS.__getitem__, self._impacts.data[span].tolist())
        return END.join(map(add, words, impacts))
