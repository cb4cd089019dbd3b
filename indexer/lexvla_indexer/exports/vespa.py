"""Vespa's document operations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lexvla.errors import InputError
from lexvla_indexer.document import Document
from lexvla_indexer.exports.base import ExportLeg, Format, Row, to_json

__all__ = ["VespaFormat"]

# What Vespa's strings must not hold: control characters, and code points that are no characters.
_REFUSED = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\ufdd0-\ufddf"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
    + "]"
)


@dataclass(frozen=True)
class VespaFormat(Format):
    """One ``put`` a line. Words go by their terms into a tensor of one mapped dimension.

    Metadata are a map of strings: values other than strings are written as JSON.
    """

    def lines(self, document: Document, row: Row) -> str:
        """Return a ``put``."""
        metadata = {
            name: value if isinstance(value, str) else to_json(value)
            for name, value in document.metadata.items()
        }
        for text in (document.text, document.uri, *metadata, *metadata.values()):
            if found := _REFUSED.search(text):
                raise InputError(document.id, f"Vespa takes no text with U+{ord(found[0]):04X}")
        fields = self.values(document, row.by_term, row, metadata)
        name = self.names.index
        return to_json({"put": f"id:{name}:{name}::{document.id}", "fields": fields}) + "\n"

    def query(self, row: Row, leg: ExportLeg, k: int) -> str:
        """Return the body of a search by the rank profile of the leg's field."""
        tensor: Any = {"cells": row.by_term} if leg == "lexical" else row.vector
        name = self.names.of(leg)
        body = {
            "yql": f"select * from {self.names.index} where true",  # noqa: S608
            "ranking": name,
            f"input.query({name})": tensor,
            "hits": k,
        }
        return to_json(body)
