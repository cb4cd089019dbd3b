"""A script for PostgreSQL with the extension pgvector."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer.document import Document
from lexvla_indexer.exports.base import ExportLeg, Format, Row, to_json

__all__ = ["PgvectorFormat"]

_MOST_WORDS = 16_000  # of a sparsevec
_MOST_DIMENSIONS = 16_000  # of a vector
_ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


@dataclass(frozen=True)
class PgvectorFormat(Format):
    """One ``COPY`` into a table, whose words are a ``sparsevec``: its columns count from 1."""

    fields = ("id", *Format.fields)
    field_form = re.compile(r"(?=.{1,63}$)[A-Za-z_][A-Za-z0-9_]*")
    field_rule = f"{Format.field_rule}, at most 63 of them"
    index_form = field_form
    index_rule = field_rule
    numbered = True

    def head(self, row: Row) -> str:
        """Return the start of the ``COPY``."""
        legs = [self.names.lexical, *([] if row.dense is None else [self.names.dense])]
        columns = ", ".join(map(_quoted, (*self.fields, *legs)))
        if row.dense is not None and len(row.dense) > _MOST_DIMENSIONS:
            rule = f"pgvector takes dense vectors of at most {_MOST_DIMENSIONS:,} numbers"
            raise UnsupportedError(f"{rule}, not {len(row.dense):,}")
        return f"COPY {_quoted(self.names.index)} ({columns}) FROM stdin;\n"

    def tail(self) -> str:
        """Return the end of the ``COPY``."""
        return "\\.\n"

    def lines(self, document: Document, row: Row) -> str:
        """Return a row."""
        if len(row.columns) > _MOST_WORDS:
            rule = f"has {len(row.columns):,} words; pgvector takes at most {_MOST_WORDS:,}"
            raise InputError(document.id, rule)
        values = [document.id, document.text, document.uri, to_json(document.metadata)]
        if any("\0" in text for text in values) or "\\u0000" in values[3]:
            raise InputError(document.id, "PostgreSQL takes no text with a null character")
        values += [_sparsevec(row), *([] if row.dense is None else [_vector(row.dense)])]
        return "\t".join(value.translate(_ESCAPED) for value in values) + "\n"

    def query(self, row: Row, leg: ExportLeg, k: int) -> str:
        """Return a ``SELECT``; its operator is the negative inner product."""
        vector = _sparsevec(row) if leg == "lexical" else _vector(row.vector)
        distance = f"{_quoted(self.names.of(leg))} <#> '{vector}'"
        chosen = f'SELECT "id", -({distance}) AS score FROM {_quoted(self.names.index)}'  # noqa: S608
        return f'{chosen} ORDER BY {distance}, "id" LIMIT {k};'


def _quoted(name: str) -> str:
    return f'"{name}"'


def _sparsevec(row: Row) -> str:
    pairs = zip(row.columns, row.weights, strict=True)
    return f"{{{_listed(f'{column + 1}:{weight}' for column, weight in pairs)}}}/{row.width}"


def _vector(values: Iterable[float]) -> str:
    return f"[{_listed(map(str, values))}]"


def _listed(parts: Iterable[str]) -> str:
    return ",".join(parts)
