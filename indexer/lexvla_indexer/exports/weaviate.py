"""Weaviate's objects, with a named dense vector: it has no sparse ones."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla.errors import UnsupportedError
from lexvla_indexer.document import Document
from lexvla_indexer.exports.base import ID, ExportLeg, Format, Row, to_json, uuid_of

__all__ = ["WeaviateFormat"]


@dataclass(frozen=True)
class WeaviateFormat(Format):
    """One object a line. Its id is a UUID; the document's own is a property.

    The field of the words is a list: the 16 strongest, strongest first, without weights. Metadata
    are JSON text: a class's properties have names and types of their own.
    """

    fields = (ID, *Format.fields)

    def lines(self, document: Document, row: Row) -> str:
        """Return an object; UnsupportedError without a dense vector."""
        if row.dense is None:
            rule = "Weaviate takes no sparse vectors, and the model makes no dense ones"
            raise UnsupportedError(rule)
        properties = {
            ID: document.id,
            "text": document.text,
            "uri": document.uri,
            "metadata": to_json(document.metadata),
            self.names.lexical: row.strongest,
        }
        made = {
            "class": self._class,
            "id": uuid_of(document),
            "properties": properties,
            "vectors": {self.names.dense: row.dense},
        }
        return f"{to_json(made)}\n"

    def query(self, row: Row, leg: ExportLeg, k: int) -> str:
        """Return the body of a GraphQL request."""
        if leg == "lexical":
            raise UnsupportedError("Weaviate has no sparse vectors; ask by the leg dense")
        vector = to_json(row.vector)
        near = f'nearVector:{{vector:{vector},targetVectors:["{self.names.dense}"]}}'
        shown = f"{ID} text uri metadata {self.names.lexical} _additional{{distance}}"
        return to_json({"query": f"{{Get{{{self._class}(limit:{k},{near}){{{shown}}}}}}}"})

    @property
    def _class(self) -> str:
        """The class, with a capital letter at the front, as Weaviate itself writes it."""
        return self.names.index[:1].upper() + self.names.index[1:]
