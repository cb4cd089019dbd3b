"""The fields of a Lucene document: those of Anserini, and what explanations and filters need.

    id            the id: a string, stored, and its UTF-8 as a binary value that orders ties
    contents      the lexical vector: terms as the vocabulary writes them, frequencies as impacts
    codes         the codes: column numbers as terms, frequencies as impacts
    filter        what filters ask for; see `lexvla_indexer.lucene.selection`
    fingerprint   a binary value
    raw           stored: id, text (as ``contents``), uri and metadata as JSON
    vectors       stored: the exact rows of all legs; see `lexvla_indexer.packed_rows`

An index that Anserini's own indexer built has ``id`` and ``contents``, and perhaps ``raw``.
"""

from __future__ import annotations

import json
from typing import Any

from lexvla.errors import UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.legs import Leg
from lexvla_indexer.lucene.jvm import java_class
from lexvla_indexer.packed_rows import pack, unpack

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
