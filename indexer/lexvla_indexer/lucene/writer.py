"""The one writer of a Lucene index: documents into impacts, deletions, commits and merges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from operator import add
from typing import Any

from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.filter_terms import terms_of
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.lucene.jvm import java_class, java_errors
from lexvla_indexer.lucene.layout import (
    CODES,
    END,
    FILTER,
    FINGERPRINT,
    ID,
    IMPACT,
    KEY,
    KEYS,
    LEXICAL,
    RAW,
    TEXT,
    VECTORS,
    State,
    Store,
    impact_terms,
    keys_by_field,
    raw_of,
)
from lexvla_indexer.lucene.selection import any_of
from lexvla_indexer.packed_rows import pack
from lexvla_indexer.staging import Staging
from lexvla_indexer.text_words import text_words

__all__ = ["Writer"]

_BUFFER_MIB = 128.0  # of new postings, until they are written as a segment
_INDEX = "org.apache.lucene.index."
_DOCUMENT = "org.apache.lucene.document."
_IMPACTS = [f"{IMPACT}{impact}" for impact in range(256)]


class Writer:
    """Change a directory, whose lock it holds. For one thread at a time.

    ``quantizer`` says how the words' weights become integers, if no commit has decided that.
    IndexLockedError if another writer has the index.
    """

    def __init__(self, store: Store, quantizer: ImpactQuantizer | None) -> None:
        self._store = store
        self._quantizer = quantizer
        self._java: Any = self._open()

    def begin(self, state: State, vocabulary: Vocabulary | None) -> None:
        """Make a new, empty index."""
        if vocabulary is not None:
            self._store.save_vocabulary(vocabulary)
            state = replace(state, vocabulary_sha256=vocabulary.sha256)
        with self._undoing():
            self._commit(state)

    def commit(
        self, staging: Staging, state: State, vocabulary: Vocabulary, is_empty: bool
    ) -> None:
        """Make everything staged durable and visible, or none of it. The staging is empty then.

        ``state`` is the newest commit's; ``is_empty`` says whether the index has no rows yet.
        """
        if staging.documents and state.vocabulary_sha256 != vocabulary.sha256:
            self._store.save_vocabulary(vocabulary)
            state = replace(state, vocabulary_sha256=vocabulary.sha256)
        with self._undoing():
            if not is_empty:
                self._delete(staging.removed)
            if staging.documents:
                documents, encoding = staging.rows()
                given = {} if self._quantizer is None else {"lexical": self._quantizer}
                known = state.legs.keys()
                state = state.with_rows(encoding, given)
                if state.legs.keys() != known:  # the scale of a leg is now fixed
                    self._store.save_quantizers(state.quantizers)
                self._add(documents, encoding, state, impact_terms(vocabulary))
            self._commit(state)
        staging.clear()

    def merge(self, state: State) -> None:
        """Merge all segments into one, without the deleted rows."""
        with self._undoing():
            self._java.forceMerge(1, signature="(I)V")
            self._commit(state)
            self._java.deleteUnusedFiles()

    def close(self) -> None:
        """Drop what is not committed, and release the lock."""
        java, self._java = self._java, None
        if java is not None:
            with java_errors(self._store.path):
                java.rollback()

    def _open(self) -> Any:
        settings = java_class(f"{_INDEX}IndexWriterConfig")(
            _analyzer(), signature="(Lorg/apache/lucene/analysis/Analyzer;)V"
        )
        # It writes the lengths of texts; other fields have none.
        similarity = java_class("org.apache.lucene.search.similarities.BM25Similarity")
        settings.setSimilarity(similarity(signature="()V"))
        settings.setRAMBufferSizeMB(_BUFFER_MIB)
        settings.setCommitOnClose(False)
        settings.setUseCompoundFile(False)
        with java_errors(self._store.path):
            return java_class(f"{_INDEX}IndexWriter")(self._store.directory(), settings)

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        """Roll back if anything fails, so that it can be tried again."""
        if self._java is None:  # the last one was rolled back
            self._java = self._open()
        try:
            with java_errors(self._store.path):
                yield
        except BaseException:
            self.close()
            raise

    def _commit(self, state: State) -> None:
        data = _map(**{KEY: state.dump()}).entrySet()
        self._java.setLiveCommitData(data, signature="(Ljava/lang/Iterable;)V")
        self._java.commit()

    def _delete(self, ids: Collection[str]) -> None:
        # One query for all: term by term, each would have to cross over to Java.
        self._java.updateDocuments(
            any_of(ID, ids),
            java_class("java.util.ArrayList")(),
            signature="(Lorg/apache/lucene/search/Query;Ljava/lang/Iterable;)J",
        )

    def _add(
        self, documents: Sequence[Document], encoding: Encoding, state: State, terms: Sequence[str]
    ) -> None:
        """Add documents, none of which is in the index, with a row of the encoding for each.

        ``terms`` are those of the lexical columns, as the index writes them.
        """
        lexical = _texts(encoding.lexical, state, "lexical", terms)
        codes: Iterable[str] = repeat("", len(documents))
        if encoding.codes is not None:
            numbers = [str(column) for column in range(encoding.codes.shape[1])]
            codes = _texts(encoding.codes, state, "codes", numbers)
        made = _LuceneDocument(encoding.codes is not None)
        for each in zip(documents, lexical, codes, pack(encoding), strict=True):
            made.fill(*each)
            self._java.addDocument(made.java)


def _texts(matrix: sparse.csr_array, state: State, leg: str, terms: Sequence[str]) -> Iterator[str]:
    """Yield the rows of a leg as terms with impacts."""
    quantized = state.legs[leg].quantizer.quantize(matrix) if matrix.nnz else matrix
    for row in range(matrix.shape[0]):
        span = slice(*quantized.indptr[row : row + 2].tolist())
        words = map(terms.__getitem__, quantized.indices[span].tolist())
        impacts = map(_IMPACTS.__getitem__, quantized.data[span].tolist())
        yield END.join(map(add, words, impacts))


class _LuceneDocument:
    """One Lucene document, filled again and again: a new one each time takes twice as long."""

    def __init__(self, has_codes: bool) -> None:
        self._bytes = java_class("org.apache.lucene.util.BytesRef")
        store = f"L{_DOCUMENT.replace('.', '/')}Field$Store;"
        self._id = java_class(f"{_DOCUMENT}StringField")(
            ID,
            "",
            java_class(f"{_DOCUMENT}Field$Store").YES,
            signature=f"(Ljava/lang/String;Ljava/lang/String;{store})V",
        )
        binary, none = java_class(f"{_DOCUMENT}BinaryDocValuesField"), self._bytes(b"")
        self._order, self._fingerprint = binary(ID, none), binary(FINGERPRINT, none)
        self._keys = binary(KEYS, none)
        options = java_class(f"{_INDEX}IndexOptions")
        self._lexical = _text_field(LEXICAL, options.DOCS_AND_FREQS)
        self._codes = _text_field(CODES, options.DOCS_AND_FREQS) if has_codes else None
        self._text = _text_field(TEXT, options.DOCS_AND_FREQS, has_lengths=True)
        self._filter = _text_field(FILTER, options.DOCS)
        stored = java_class(f"{_DOCUMENT}StoredField")
        self._raw = stored(RAW, "", signature="(Ljava/lang/String;Ljava/lang/String;)V")
        self._vectors = stored(VECTORS, b"", signature="(Ljava/lang/String;[B)V")
        values = (self._order, self._fingerprint, self._keys)
        fields = (self._id, *values, self._lexical, self._codes)
        self.java = java_class(f"{_DOCUMENT}Document")()
        for field in (*fields, self._text, self._filter, self._raw, self._vectors):
            if field is not None:
                self.java.add(field)

    def fill(self, document: Document, lexical: str, codes: str, vectors: bytes) -> None:
        """Fill it, from texts of terms with impacts and what `pack` gave."""
        self._id.setStringValue(document.id)
        self._order.setBytesValue(self._bytes(document.id.encode()))
        self._fingerprint.setBytesValue(self._bytes(document.fingerprint.encode()))
        self._keys.setBytesValue(self._bytes(keys_by_field(document).encode()))
        self._lexical.setStringValue(lexical)
        if self._codes is not None:
            self._codes.setStringValue(codes)
        self._text.setStringValue(END.join(text_words(document.text)))
        self._filter.setStringValue(END.join(terms_of(document)))
        self._raw.setStringValue(raw_of(document))
        self._vectors.setBytesValue(vectors)


def _text_field(name: str, options: Any, has_lengths: bool = False) -> Any:
    kind = java_class(f"{_DOCUMENT}FieldType")()
    kind.setIndexOptions(options)
    kind.setTokenized(True)
    kind.setOmitNorms(not has_lengths)
    kind.freeze()
    path = _INDEX.replace(".", "/")
    signature = f"(Ljava/lang/String;Ljava/lang/CharSequence;L{path}IndexableFieldType;)V"
    text = java_class("java.lang.String")("")
    return java_class(f"{_DOCUMENT}Field")(name, text, kind, signature=signature)


def _analyzer() -> Any:
    """Return what reads our fields: terms with impacts, and the plain ones of texts and filters."""
    custom = java_class("org.apache.lucene.analysis.custom.CustomAnalyzer")
    impacts = custom.builder().withTokenizer("simplePatternSplit", _map(pattern=END))
    impacts = impacts.addTokenFilter("delimitedTermFrequency", _map(delimiter=IMPACT)).build()
    plain = custom.builder().withTokenizer("simplePatternSplit", _map(pattern=END)).build()
    wrapper = "org.apache.lucene.analysis.miscellaneous.PerFieldAnalyzerWrapper"
    return java_class(wrapper)(impacts, _map(**{FILTER: plain, TEXT: plain}))


def _map(**values: Any) -> Any:
    made = java_class("java.util.HashMap")()
    for name, value in values.items():
        made.put(name, value)
    return made
