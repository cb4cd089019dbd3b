"""What an index of ours is on the server: fields, settings, and what it says of itself.

    id            the id, also as ``_id``: orders ties
    lex           sparse_vector: the words; terms as the vocabulary writes them
    codes         sparse_vector: the codes; column numbers as terms
    dense         dense_vector, by inner product
    filter        the terms of `lexvla_indexer.filter_terms`
    text, uri     kept as they are, not searched
    metadata      the same, as JSON
    fingerprint   the same
    vectors       the exact rows of all legs, base64 of `lexvla_indexer.packed_rows`: the
                  server keeps the weights of ``lex`` and ``codes`` with 9 significant bits
    vocabulary    of one document that is no item: the terms of the lexical columns

``lex``, ``codes``, ``dense`` and ``filter`` are indexed and not kept in ``_source``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, IndexVersionError
from lexvla_indexer.document import Document
from lexvla_indexer.filter_terms import terms_of
from lexvla_indexer.legs import Leg
from lexvla_indexer.packed_rows import pack

__all__ = [
    "FIELD_OF",
    "FILTER",
    "ID",
    "SHOWN",
    "VOCABULARY_ID",
    "Meta",
    "document_of",
    "leg_fields",
    "mappings",
    "settings",
    "sources",
]

FORMAT_VERSION = 1
KEY = "lexvla"

ID, FILTER = "id", "filter"
FIELD_OF: dict[Leg, str] = {"lexical": "lex", "codes": "codes", "dense": "dense"}
SHOWN = ("text", "uri", "metadata", "fingerprint")
VOCABULARY_ID = "\x1fvocabulary"  # no id of an item has such a character

# Up to so many documents the dense leg is searched exactly, by looking at each.
FLAT_DOCUMENTS = 100_000
FLAT, GRAPH = "flat", "int8_hnsw"

NUMBER = "%.9g"

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_KEPT = {"type": "keyword", "index": False, "doc_values": False}


@dataclass(frozen=True)
class Meta:
    """What an index says of itself, in ``_meta`` of its mapping.

    Attributes:
        model: The name of the model whose vectors these are, if it was given.
        vocabulary_sha256: Names the vocabulary; empty before the first vectors, if none was given.
        widths: The legs and their numbers of columns; empty before the first vectors.
        dense: How the dense leg is searched: ``flat``, exactly, or ``int8_hnsw``.
        writer_version: The version of the program that made the index.
        notes: What others keep with the index, by name, such as fitted weights of legs.
    """

    model: str | None = None
    vocabulary_sha256: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    dense: str = FLAT
    writer_version: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """Return it as ``_meta``."""
        return {KEY: {"format_version": FORMAT_VERSION, **asdict(self)}}

    @classmethod
    def load(cls, place: object, found: Mapping[str, Any]) -> Meta:
        """Read what `dump` made.

        Raises:
            IndexCorruptError: It is not of that form: the index is not ours.
            IndexVersionError: A newer program wrote it.
        """
        try:
            values = dict(found[KEY])
            number = values.pop("format_version")
            if number > FORMAT_VERSION:
                rule = f"format {number} is newer than this program, which reads {FORMAT_VERSION}"
                raise IndexVersionError(f"{place}: {rule}")
            widths = {leg: values["widths"][leg] for leg in FIELD_OF if leg in values["widths"]}
            return cls(**{**values, "widths": widths})
        except (KeyError, TypeError, ValueError) as error:
            rule = "is no index of lexvla, or its _meta is damaged"
            raise IndexCorruptError(f"{place}: {rule}") from error


def settings(shards: int) -> dict[str, Any]:
    """Return the settings of a new index.

    It is refreshed by commits only: else readers would see parts of them.
    """
    return {
        "number_of_shards": shards,
        "auto_expand_replicas": "0-1",
        "refresh_interval": "-1",
    }


def mappings(meta: Meta) -> dict[str, Any]:
    """Return the mapping of a new index."""
    return {
        "dynamic": "strict",
        "_meta": meta.dump(),
        "_source": {"excludes": [*FIELD_OF.values(), FILTER]},
        "properties": {
            ID: {"type": "keyword"},
            FILTER: {"type": "keyword", "doc_values": False},
            **dict.fromkeys((*SHOWN, "vocabulary"), _KEPT),
            "vectors": {"type": "binary"},
            **leg_fields(meta),
        },
    }


def leg_fields(meta: Meta) -> dict[str, Any]:
    """Return the mapping's fields of the legs that an index has."""
    fields: dict[str, Any] = {FIELD_OF["lexical"]: {"type": "sparse_vector"}}
    if "codes" in meta.widths:
        fields[FIELD_OF["codes"]] = {"type": "sparse_vector"}
    if "dense" in meta.widths:
        fields[FIELD_OF["dense"]] = {
            "type": "dense_vector",
            "dims": meta.widths["dense"],
            # Not dot_product: that refuses vectors of no unit length, such as that of no words.
            "similarity": "max_inner_product",
            "index_options": {"type": meta.dense},
        }
    return fields


def sources(
    documents: Sequence[Document], encoding: Encoding, terms: Sequence[str]
) -> Iterator[str]:
    """Give documents as the server takes them: JSON.

    Args:
        documents: What is kept beside the vectors.
        encoding: A row for each.
        terms: Those of the lexical columns.
    """
    # A row is written by one format for all its numbers. 9 digits tell all float32 numbers apart;
    # the json module would write the 17 of a float64, which takes it and the server longer.
    of_word = cache(lambda column: _json(terms[column]).replace("%", "%%") + f":{NUMBER}")
    legs: list[tuple[Leg, sparse.csr_array, Callable[[int], str]]]
    legs = [("lexical", encoding.lexical, of_word)]
    if encoding.codes is not None:
        legs.append(("codes", encoding.codes, f'"{{}}":{NUMBER}'.format))
    for row, (document, vectors) in enumerate(zip(documents, pack(encoding), strict=True)):
        made = {
            ID: document.id,
            FILTER: list(terms_of(document)),
            "text": document.text,
            "uri": document.uri,
            "metadata": json.dumps(dict(document.metadata)),
            "fingerprint": document.fingerprint,
            "vectors": base64.b64encode(vectors).decode(),
        }
        parts = [_json(made)[1:-1]]
        for leg, matrix, of_column in legs:
            span = slice(*matrix.indptr[row : row + 2].tolist())
            form = ",".join(map(of_column, matrix.indices[span].tolist()))
            parts.append(f'"{FIELD_OF[leg]}":{{{form % tuple(matrix.data[span].tolist())}}}')
        if encoding.dense is not None:
            form = ",".join([NUMBER] * encoding.dense.shape[1])
            parts.append(f'"{FIELD_OF["dense"]}":[{form % tuple(encoding.dense[row].tolist())}]')
        yield f"{{{','.join(parts)}}}"


def document_of(name: str, source: Mapping[str, Any]) -> Document:
    """Return the document that `sources` wrote."""
    text, uri, metadata, fingerprint = (source[each] for each in SHOWN)
    return Document(name, uri, text, json.loads(metadata), fingerprint)
