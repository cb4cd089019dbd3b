"""Milvus's rows."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla.errors import InputError
from lexvla_indexer.document import Document
from lexvla_indexer.exports.base import ExportLeg, Format, Row, check_numbers, to_json

__all__ = ["MilvusFormat"]

_MOST_BYTES = 65_535  # of a VARCHAR, and of a JSON field


@dataclass(frozen=True)
class MilvusFormat(Format):
    """One row a line, with its words by column number."""

    fields = ("id", *Format.fields)
    numbered = True

    def lines(self, document: Document, row: Row) -> str:
        """Return a row; InputError for a document without words, which Milvus refuses."""
        if not row.columns:
            raise InputError(document.id, "has no words, and Milvus takes no empty sparse vector")
        metadata = check_numbers(document)
        for name, text in (
            ("text", document.text),
            ("uri", document.uri),
            ("metadata", to_json(metadata)),
        ):
            if (size := len(text.encode())) > _MOST_BYTES:
                rule = f"its {name} has {size:,} bytes; Milvus takes at most {_MOST_BYTES:,}"
                raise InputError(document.id, rule)
        values = self.values(document, row.by_column, row, metadata)
        return to_json({"id": document.id, **values}) + "\n"

    def query(self, row: Row, leg: ExportLeg, k: int) -> str:
        """Return the body of ``entities/search``."""
        body = {
            "collectionName": self.names.index,
            "data": [row.by_column if leg == "lexical" else row.vector],
            "annsField": self.names.of(leg),
            "limit": k,
            "outputFields": ["text", "uri", "metadata"],
        }
        return to_json(body)
