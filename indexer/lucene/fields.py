"""The fields of a Lucene document: those of Anserini, and what explanations and filters need.

    id            the id: a string, stored, and its UTF-8 as a binary value that orders ties
    contents      the lexical vector: terms as the vocabulary writes them, frequencies as impacts
    codes         the codes: column numbers as terms, frequencies as impacts
    filter        what filters ask for; see `indexer.lucene.selection`
    fingerprint   a binary value
    raw           stored: id, text (as ``contents``), uri and metadata as JSON
    vectors       stored: the exact rows of all legs; see `pack`

An index that Anserini's own indexer built has ``id`` and ``contents``, and perhaps ``raw``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from indexer.base import Document, Leg
from indexer.lucene.jvm import java_class
from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError
from lexvla.vocabulary import Vocabulary

__all__ = [
    "CODES",
    "FIELD_OF",
    "FILTER",
    "FINGERPRINT",
    "ID",
    "LEXICAL",
    "RAW",
    "VECTORS",
    "LuceneDocument",
    "analyzer",
    "document_of",
    "impact_terms",
    "pack",
    "raw_of",
    "unpack",
]

ID, LEXICAL, CODES, FILTER = "id", "contents", "codes", "filter"
FINGERPRINT, RAW, VECTORS = "fingerprint", "raw", "vectors"
FIELD_OF: dict[Leg, str] = {"lexical": LEXICAL, "codes": CODES}

MAX_TERM_BYTES = 32_766  # of Lucene

# A null character ends a term, and \x01 stands before its impact. A vocabulary has no null
# characters; the others are so rare that nearly all terms stand in the index as they are.
END, IMPACT = "\0", "\x01"
_SAFE = str.maketrans({"\x01": "\x02\x02", "\x02": "\x02\x03"})


def impact_terms(vocabulary: Vocabulary) -> list[str]:
    """Return the terms as they stand in the index.

    Raises:
        UnsupportedError: A term is longer than Lucene takes.
    """
    terms = [term.translate(_SAFE) for term in vocabulary.terms]
    for term in terms:
        if len(term) * 4 > MAX_TERM_BYTES and len(term.encode()) > MAX_TERM_BYTES:
            rule = f"Lucene takes terms of at most {MAX_TERM_BYTES:,} bytes"
            raise UnsupportedError(f"{rule}; the vocabulary has {term[:40]!r}...")
    return terms


def analyzer() -> Any:
    """Return what reads our fields: terms with impacts, and the plain terms of filters."""
    custom = java_class("org.apache.lucene.analysis.custom.CustomAnalyzer")
    impacts = custom.builder().withTokenizer("simplePatternSplit", _map(pattern=END))
    impacts = impacts.addTokenFilter("delimitedTermFrequency", _map(delimiter=IMPACT)).build()
    plain = custom.builder().withTokenizer("simplePatternSplit", _map(pattern=END)).build()
    of_field = java_class("java.util.HashMap")()
    of_field.put(FILTER, plain)
    wrapper = "org.apache.lucene.analysis.miscellaneous.PerFieldAnalyzerWrapper"
    return java_class(wrapper)(impacts, of_field)


def _map(**values: str) -> Any:
    made = java_class("java.util.HashMap")()
    for name, value in values.items():
        made.put(name, value)
    return made


class LuceneDocument:
    """One document of Lucene, filled again and again: making each anew takes twice the time.

    Args:
        has_codes: Whether documents have codes.
    """

    def __init__(self, has_codes: bool) -> None:
        lucene = "org.apache.lucene.document."
        kept = java_class(f"{lucene}Field$Store").YES
        self._bytes = java_class("org.apache.lucene.util.BytesRef")
        none = self._bytes(b"")
        self._id = java_class(f"{lucene}StringField")(
            ID,
            "",
            kept,
            signature=f"(Ljava/lang/String;Ljava/lang/String;L{_path(lucene)}Field$Store;)V",
        )
        self._order = java_class(f"{lucene}BinaryDocValuesField")(ID, none)
        self._fingerprint = java_class(f"{lucene}BinaryDocValuesField")(FINGERPRINT, none)
        frequencies = java_class("org.apache.lucene.index.IndexOptions").DOCS_AND_FREQS
        self._lexical = _text_field(LEXICAL, frequencies)
        self._codes = _text_field(CODES, frequencies) if has_codes else None
        self._filter = _text_field(FILTER, java_class("org.apache.lucene.index.IndexOptions").DOCS)
        stored = java_class(f"{lucene}StoredField")
        self._raw = stored(RAW, "", signature="(Ljava/lang/String;Ljava/lang/String;)V")
        self._vectors = stored(VECTORS, b"", signature="(Ljava/lang/String;[B)V")
        fields = (self._id, self._order, self._fingerprint, self._lexical, self._codes)
        self.java = java_class(f"{lucene}Document")()
        for field in (*fields, self._filter, self._raw, self._vectors):
            if field is not None:
                self.java.add(field)

    def fill(
        self, document: Document, lexical: str, codes: str, conditions: str, vectors: bytes
    ) -> None:
        """Make it a document, of texts with terms and impacts, terms of filters, and `pack`."""
        self._id.setStringValue(document.id)
        self._order.setBytesValue(self._bytes(document.id.encode()))
        self._fingerprint.setBytesValue(self._bytes(document.fingerprint.encode()))
        self._lexical.setStringValue(lexical)
        if self._codes is not None:
            self._codes.setStringValue(codes)
        self._filter.setStringValue(conditions)
        self._raw.setStringValue(raw_of(document))
        self._vectors.setBytesValue(vectors)


def _path(name: str) -> str:
    return name.replace(".", "/")


def _text_field(name: str, options: Any) -> Any:
    kind = java_class("org.apache.lucene.document.FieldType")()
    kind.setIndexOptions(options)
    kind.setTokenized(True)
    kind.setOmitNorms(True)
    kind.freeze()
    make = java_class("org.apache.lucene.document.Field")
    signature = "(Ljava/lang/String;Ljava/lang/CharSequence;L{}IndexableFieldType;)V"
    signature = signature.format("org/apache/lucene/index/")
    text = java_class("java.lang.String")("")
    return make(name, text, kind, signature=signature)


def raw_of(document: Document) -> str:
    """Return what is stored of a document beside its vectors, as ASCII JSON."""
    stored = {
        "id": document.id,
        "contents": document.text,
        "uri": document.uri,
        "metadata": dict(document.metadata),
    }
    return json.dumps(stored)


def document_of(raw: str, fingerprint: str) -> Document:
    """Return the document that `raw_of` wrote."""
    stored = json.loads(raw)
    text, uri, metadata = stored["contents"], stored["uri"], stored["metadata"]
    return Document(stored["id"], uri, text, metadata, fingerprint)


def pack(encoding: Encoding) -> Iterator[bytes]:
    """Give each row's exact values: little-endian, so that any program can read them.

    int32 words, patches (0 or 1), codes, width of the dense vector (-1: none); then int32 columns
    and float32 weights of the words, int16 patches, columns and weights of the codes, and the
    float32 dense vector.
    """
    lexical, codes, dense, patches = (
        encoding.lexical,
        encoding.codes,
        encoding.dense,
        encoding.patches,
    )
    words, weights = lexical.indices.astype("<i4"), lexical.data.astype("<f4")
    head = np.full(4, -1, "<i4")
    if codes is not None:
        code_columns, code_weights = codes.indices.astype("<i4"), codes.data.astype("<f4")
    for row in range(len(encoding)):
        span = slice(lexical.indptr[row], lexical.indptr[row + 1])
        read_from = None if patches is None else patches[span]
        head[:2] = span.stop - span.start, read_from is not None and (read_from >= 0).any()
        parts = [words[span], weights[span]]
        if head[1]:
            parts.append(np.asarray(read_from, "<i2"))
        if codes is not None:
            span = slice(codes.indptr[row], codes.indptr[row + 1])
            head[2] = span.stop - span.start
            parts += [code_columns[span], code_weights[span]]
        if dense is not None:
            head[3] = dense.shape[1]
            parts.append(dense[row].astype("<f4"))
        yield b"".join(part.tobytes() for part in (head, *parts))


def unpack(rows: Sequence[bytes], widths: Mapping[str, int]) -> Encoding:
    """Return the rows that `pack` wrote.

    Args:
        rows: One at least.
        widths: The number of columns of each leg.

    Raises:
        ValueError: A row is damaged.
    """
    words: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    patches: list[np.ndarray] = []
    code_columns: list[np.ndarray] = []
    code_weights: list[np.ndarray] = []
    dense: list[np.ndarray] = []
    has_any_patch = False
    for row in rows:
        count, has_patches, codes, width = np.frombuffer(row, "<i4", 4).tolist()
        at = 16
        words.append(np.frombuffer(row, "<i4", count, at))
        weights.append(np.frombuffer(row, "<f4", count, at := at + 4 * count))
        at += 4 * count
        if has_patches:
            patches.append(np.frombuffer(row, "<i2", count, at))
            at += 2 * count
            has_any_patch = True
        else:
            patches.append(np.full(count, -1, np.int16))
        if codes >= 0:
            code_columns.append(np.frombuffer(row, "<i4", codes, at))
            code_weights.append(np.frombuffer(row, "<f4", codes, at := at + 4 * codes))
            at += 4 * codes
        if width >= 0:
            dense.append(np.frombuffer(row, "<f4", width, at))
    return Encoding(
        _stacked(words, weights, widths["lexical"]),
        np.concatenate(patches).astype(np.int16) if has_any_patch else None,
        _stacked(code_columns, code_weights, widths["codes"]) if "codes" in widths else None,
        np.stack(dense).astype(np.float32) if "dense" in widths else None,
    )


def _stacked(columns: list[np.ndarray], weights: list[np.ndarray], width: int) -> sparse.csr_array:
    starts = np.cumsum([0, *map(len, columns)])
    parts = (
        np.concatenate(weights).astype(np.float32),
        np.concatenate(columns).astype(np.int32),
        starts.astype(np.int32) if starts[-1] < 2**31 else starts,
    )
    return sparse.csr_array(parts, shape=(len(columns), width))
