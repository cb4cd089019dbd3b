"""Comparisons with the fields of a user's own index, as clauses of Elasticsearch.

They mean what they mean to the server. In particular, a range finds a document with a list if any
of its values lies within it, and a date without a time means the whole day.
"""

from __future__ import annotations

from collections.abc import Sequence

from lexvla.errors import InputError
from lexvla_indexer.elastic.mapped_fields import FieldKind, MappedField
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.elastic.selection import any_of
from lexvla_indexer.filters import Comparison, In, Value, kind_of

__all__ = ["PARSED", "comparison_of_ids", "native_comparison", "values_of"]

PARSED = ("date", "date_nanos", "ip")  # types whose values the server parses

_SIGNS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_TAKEN: dict[FieldKind, tuple[str, ...]] = {
    "boolean": ("boolean",),
    "double": ("number",),
    "keyword": ("string",),
    "date": ("string", "number"),
}


def values_of(part: Comparison | In) -> Sequence[Value]:
    """Return what a comparison compares its field with."""
    return part.values if isinstance(part, In) else (part.value,)


def native_comparison(part: Comparison | In, field: MappedField) -> Json:
    """Return a comparison as a query; InputError if the field has no values of such a type."""
    values = values_of(part)
    for value in values:
        if kind_of(value) not in _TAKEN[field.kind]:
            raise InputError(part.field, _mismatch(field, value))
    if isinstance(part, In) or part.operator == "=":
        return any_of(field.name, values)
    if part.operator == "!=":
        return _unequal({"exists": {"field": field.name}}, any_of(field.name, values))
    return {"range": {field.name: {_SIGNS[part.operator]: part.value}}}


def comparison_of_ids(part: Comparison | In) -> Json:
    """Return a comparison of ``_id`` as a query; InputError if it is a range."""
    found = {"ids": {"values": [value for value in values_of(part) if isinstance(value, str)]}}
    if isinstance(part, In) or part.operator == "=":
        return found
    if part.operator == "!=":
        return _unequal({"match_all": {}}, found)
    raise InputError(part.field, "the server cannot order documents by _id; use =, != or in")


def _unequal(present: Json, equal: Json) -> Json:
    return {"bool": {"filter": [present], "must_not": [equal]}}


def _mismatch(field: MappedField, value: Value) -> str:
    shown = f"{value!r}" if isinstance(value, str) else str(value).lower()
    wanted = {
        "boolean": "true or false",
        "double": "a number without quotes",
        "keyword": "a string in double quotes",
        "date": "a date in double quotes",
    }[field.kind]
    return f"is of type {field.type} in the index: compare it with {wanted}, not {shown}"
