"""Qdrant's points, with named sparse and dense vectors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lexvla_indexer.document import Document
from lexvla_indexer.exports.base import (
    ID,
    ExportLeg,
    Format,
    Row,
    check_numbers,
    to_json,
    uuid_of,
)

__all__ = ["QdrantFormat"]


@dataclass(frozen=True)
class QdrantFormat(Format):
    """One point a line. Its id is a UUID; the document's own is in the payload.

    A document without words has no lexical vector.
    """

    fields = ()  # the payload has names of its own
    field_form = re.compile(r"[^\s/.]+")
    field_rule = "must not be empty or have a space, dot or /"
    index_form = field_form
    index_rule = field_rule
    numbered = True

    def lines(self, document: Document, row: Row) -> str:
        """Return a point."""
        vectors: dict[str, Any] = {}
        if row.columns:
            vectors[self.names.lexical] = _sparse(row)
        if row.dense is not None:
            vectors[self.names.dense] = row.dense
        payload = {
            ID: document.id,
            "text": document.text,
            "uri": document.uri,
            "metadata": check_numbers(document),
        }
        point = {"id": uuid_of(document), "vector": vectors, "payload": payload}
        return f"{to_json(point)}\n"

    def query(self, row: Row, leg: ExportLeg, k: int) -> str:
        """Return the body of ``points/query``."""
        query = _sparse(row) if leg == "lexical" else row.vector
        asked = {"query": query, "using": self.names.of(leg), "limit": k, "with_payload": True}
        return to_json(asked)


def _sparse(row: Row) -> dict[str, list[Any]]:
    return {"indices": row.columns, "values": row.weights}
