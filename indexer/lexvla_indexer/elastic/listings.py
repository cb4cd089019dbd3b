"""Orders and counts of metadata as the server takes them, by the fields of `typed_fields`.

A key may have values of several types. Booleans come first, then numbers, then strings, as in
`lexvla_indexer.sort_keys`; numbers are compared as float64.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lexvla.errors import UnsupportedError
from lexvla_indexer.elastic.layout import FILTER, ID
from lexvla_indexer.elastic.product import Json, Product
from lexvla_indexer.facets import Facet, FacetCounts, Range
from lexvla_indexer.filter_terms import starts_of_values
from lexvla_indexer.filters import And, Comparison, Filter, Value
from lexvla_indexer.listing import Order, Position
from lexvla_indexer.sort_keys import key_of

__all__ = [
    "after_of",
    "counted",
    "facet_body",
    "has_value",
    "names_of",
    "number_range",
    "position_of",
    "sort_of",
]

_KINDS = ("boolean", "double", "keyword")  # in the order of their values
_COUNTED = 50_000  # values that each shard counts, of which the best are taken


def names_of(field: str, product: Product) -> dict[str, str]:
    """Return the names of a metadata field's typed fields, by kind."""
    return {kind: f"{kind}.{product.part(field)}" for kind in _KINDS}


def has_value(field: str) -> Json:
    """Return a query for documents with a value of a metadata field, of whatever type."""
    any_of = [{"prefix": {FILTER: start}} for start in starts_of_values(field)]
    return {"bool": {"should": any_of, "minimum_should_match": 1}}


def sort_of(order: Sequence[Order], product: Product) -> list[Json]:
    """Return what to sort by: several fields for each, as it may have values of each type."""
    made: list[Json] = []
    for field, descending in order:
        direction = "desc" if descending else "asc"
        pairs = list(names_of(field, product).items())
        for kind, name in reversed(pairs) if descending else pairs:
            rules = {"order": direction, "missing": "_last", "unmapped_type": kind}
            made.append({name: rules})
    return [*made, {ID: "asc"}]


def position_of(values: Sequence[Any]) -> Position:
    """Return the position of a hit with these sort values, as text."""
    size = len(_KINDS)
    spans = (values[start : start + size] for start in range(0, len(values) - 1, size))
    return (*(json.dumps(span) for span in spans), values[-1])


def after_of(position: Position) -> list[Any]:
    """Return the sort values of a position; ValueError if it is not one of the server's."""
    made: list[Any] = []
    for text in position[:-1]:
        values = json.loads(text or "")
        if not isinstance(values, list) or len(values) != len(_KINDS):
            raise ValueError(f"no position in such an order: {position!r}")
        made += values
    return [*made, position[-1]]


def facet_body(
    facet: Facet, ranges: Sequence[Json], fields: Mapping[str, str], present: Json
) -> Json:
    """Return the aggregations that count a field.

    Args:
        facet: What to count.
        ranges: Queries for its ranges.
        fields: The server's fields with its values, by kind.
        present: A query for documents with a value.
    """
    made: Json = {"missing": {"filter": {"bool": {"must_not": [present]}}}}
    if facet.ranges is not None:
        return made | {"ranges": {"filters": {"filters": list(ranges)}}}
    best = {
        "size": facet.limit,
        "shard_size": _COUNTED,
        "order": [{"_count": "desc"}, {"_key": "asc"}],
    }
    return made | {kind: {"terms": {"field": field, **best}} for kind, field in fields.items()}


def number_range(field: str, limits: Range) -> Filter:
    """Return a range of numbers as a filter."""
    parts = []
    if limits.low is not None:
        parts.append(Comparison(field, ">=", limits.low))
    if limits.high is not None:
        parts.append(Comparison(field, "<", limits.high))
    return And(tuple(parts)) if len(parts) > 1 else parts[0]


def counted(place: object, facet: Facet, answer: Mapping[str, Any]) -> FacetCounts:
    """Read the server's counts; UnsupportedError if they are not exact."""
    missing = int(answer["missing"]["doc_count"])
    if facet.ranges is not None:
        counts = [int(bucket["doc_count"]) for bucket in answer["ranges"]["buckets"]]
        pairs = list(zip(facet.asked_ranges, counts, strict=True))
        return FacetCounts(ranges=pairs, missing=missing)
    values: Counter[tuple[str, Value]] = Counter()
    other = 0
    for kind in answer.keys() - {"missing"}:
        own = answer[kind]
        if own.get("doc_count_error_upper_bound", 0):
            rule = f"has more than {_COUNTED:,} values on a shard: they cannot be counted exactly"
            raise UnsupportedError(f"{place}: {facet.field!r} {rule}")
        other += int(own["sum_other_doc_count"])
        for bucket in own["buckets"]:
            value = _value(kind, bucket)
            values[key_of(value), value] += int(bucket["doc_count"])
    best = sorted(values.items(), key=lambda pair: (-pair[1], pair[0][0]))
    listed = [(value, count) for (_, value), count in best[: facet.limit]]
    other += sum(count for _, count in best[facet.limit :])
    return FacetCounts(values=listed, other=other, missing=missing)


def _value(kind: str, bucket: Mapping[str, Any]) -> Value:
    key = bucket["key"]
    if kind == "date":
        return str(bucket["key_as_string"])
    if kind == "boolean":
        return bool(key)
    if kind == "float":  # told with the digits of a float64
        key = float(str(np.float32(key)))
    if kind in ("double", "float"):
        return int(key) if float(key).is_integer() else float(key)
    return str(key)
