"""Metadata as fields that Kibana counts, sorts and compares: one object for each type.

    keyword.NAME   strings and lists of strings
    double.NAME    numbers, as float64
    boolean.NAME   true and false
    date.NAME      strings that are a date, or a date with a time, of ISO 8601

A key may be of another type in each document: its values are then in several objects. The server
adds a field when it first sees one, up to 1,000 in an index; it leaves out what comes after that,
and values that it cannot take. The field ``metadata`` always has everything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lexvla_indexer.document import MetadataValue
from lexvla_indexer.elastic.product import Json, Product

__all__ = ["DYNAMIC_TEMPLATES", "LONGEST", "typed_fields", "typed_metadata"]

LONGEST = 8191  # characters, of at most 4 bytes: Lucene takes terms of 32,766 bytes

_MAPPED: dict[str, Json] = {
    "keyword": {"type": "keyword", "ignore_above": LONGEST},
    "double": {"type": "double"},
    "date": {"type": "date", "format": "strict_date_optional_time", "ignore_malformed": True},
    "boolean": {"type": "boolean"},
}
DYNAMIC_TEMPLATES: list[Json] = [
    {kind: {"path_match": f"{kind}.*", "mapping": mapped}} for kind, mapped in _MAPPED.items()
]
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:\d\d)?))?"
)


def typed_fields(product: Product) -> Json:
    """Return the mapping of the objects of all types."""
    return {kind: product.object_field() for kind in _MAPPED}


def typed_metadata(
    metadata: Mapping[str, MetadataValue], product: Product
) -> dict[str, dict[str, MetadataValue]]:
    """Return metadata by type; without names that are blank and numbers beyond float64."""
    typed: dict[str, dict[str, MetadataValue]] = {}
    for name, value in metadata.items():
        if not name.strip():
            continue
        name = product.part(name)
        if isinstance(value, bool):
            typed.setdefault("boolean", {})[name] = value
        elif isinstance(value, int | float):
            if math.isfinite(number := _float(value)):
                typed.setdefault("double", {})[name] = number
        else:
            typed.setdefault("keyword", {})[name] = value
            if isinstance(value, str) and (date := _DATE.fullmatch(value)):
                whole = "T".join(part for part in date.groups() if part)
                typed.setdefault("date", {})[name] = whole
    return typed


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
