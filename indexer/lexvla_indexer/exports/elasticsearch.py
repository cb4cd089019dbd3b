"""Elasticsearch's bulk requests."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lexvla.errors import InputError
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.writer import MAX_ID_BYTES
from lexvla_indexer.exports.base import ExportLeg, Format, Row, to_json

__all__ = ["ElasticsearchFormat"]


@dataclass(frozen=True)
class ElasticsearchFormat(Format):
    """Two lines a document: the action ``index``, which replaces it, and its source.

    Words go by their terms into a ``sparse_vector``.
    """

    field_form = re.compile(r"[^\W_][^\s.]*(\.[^\s.]+)*")
    field_rule = "must begin with a letter or digit, and have no space or empty part between dots"
    index_form = re.compile(r'(?!\.{1,2}$)[^-_+A-Z\s\\/*?"<>|,#:][^A-Z\s\\/*?"<>|,#:]*')
    index_rule = 'must be lower case, without space \\ / * ? " < > | , # :, nor - _ + at the front'

    def lines(self, document: Document, row: Row) -> str:
        """Return an action and a source."""
        if (size := len(document.id.encode())) > MAX_ID_BYTES:
            rule = f"Elasticsearch takes ids of at most {MAX_ID_BYTES} bytes, not {size}"
            raise InputError(document.id, rule)
        source = self.values(document, row.by_term, row, document.metadata)
        action = {"index": {"_index": self.names.index, "_id": document.id}}
        return f"{to_json(action)}\n{to_json(source)}\n"

    def query(self, row: Row, leg: ExportLeg, k: int) -> str:
        """Return the body of a search."""
        if leg == "lexical":
            # By default, newer servers leave out words that are frequent and have low weights.
            words = {"field": self.names.lexical, "query_vector": row.by_term, "prune": False}
            return to_json({"query": {"sparse_vector": words}, "size": k})
        vector = {"field": self.names.dense, "query_vector": row.vector}
        return to_json({"query": {"knn": {**vector, "k": k, "num_candidates": k}}, "size": k})
