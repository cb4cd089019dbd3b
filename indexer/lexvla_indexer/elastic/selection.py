"""Filters as queries of Elasticsearch, with the meaning of `Filter.matches`.

The field ``filter`` has the terms of `lexvla_indexer.filter_terms`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterable, Sequence

from lexvla_indexer.elastic.layout import FILTER, ID
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.filter_terms import span, terms_equal, typed_term
from lexvla_indexer.filters import And, Comparison, Filter, In, Not, Or, Value

__all__ = ["any_of", "combined", "selection"]

MOST_TERMS = 65_536  # of one query; the default of index.max_terms_count
# The server refuses queries of over 30 levels, and filters may have 32. It counts from 0 again in a
# query that is given as base64 text.
MOST_LEVELS = 20

Select = Callable[[Filter], Collection[str]]
Compared = Callable[[Comparison | In], Json]


def selection(filter: Filter, select: Select) -> Json:  # noqa: A002 - the public word for it
    """Return a filter as a query.

    ``select`` returns the ids of the documents that a filter chooses, by looking at each: for a
    range whose limit is a string of over 200 characters, or a number of over a thousand digits.
    """
    return combined(filter, lambda part: _comparison(part, select))


def combined(filter: Filter, compared: Compared) -> Json:  # noqa: A002
    """Return a filter as a query, made of those of its comparisons."""
    return _query(filter, compared)[0]


def any_of(field: str, terms: Collection[Value]) -> Json:
    """Return a query for documents that have one of the terms, of which there may be many."""
    if not terms:
        return {"match_none": {}}
    listed = sorted(terms, key=lambda term: (str(type(term)), term))
    starts = range(0, len(listed), MOST_TERMS)
    parts: list[Json] = [{"terms": {field: listed[i : i + MOST_TERMS]}} for i in starts]
    return parts[0] if len(parts) == 1 else _bool(should=parts)


def _query(filter: Filter, compared: Compared) -> tuple[Json, int]:  # noqa: A002
    """Return a filter as a query, and how many levels it has."""
    if isinstance(filter, And):
        wanted = [part for part in filter.parts if not isinstance(part, Not)]
        chosen = _limited(_query(part, compared) for part in wanted)
        banned = [part.part for part in filter.parts if isinstance(part, Not)]
        without = _limited(_query(part, compared) for part in banned)
        levels = max(level for _, level in (*chosen, *without))
        return _bool(filter=[q for q, _ in chosen], must_not=[q for q, _ in without]), levels + 1
    if isinstance(filter, Or):
        parts = _limited(_query(part, compared) for part in filter.parts)
        return _bool(should=[q for q, _ in parts]), max(level for _, level in parts) + 1
    if isinstance(filter, Not):
        if isinstance(filter.part, Not):
            return _query(filter.part.part, compared)
        ((inner, levels),) = _limited([_query(filter.part, compared)])
        return _bool(must_not=[inner]), levels + 1
    if not isinstance(filter, Comparison | In):
        raise TypeError(f"not a filter: {filter!r}")
    return compared(filter), 2


def _comparison(comparison: Comparison | In, select: Select) -> Json:
    if isinstance(comparison, In):
        return any_of(FILTER, terms_equal(comparison.field, comparison.values))
    field, value = comparison.field, comparison.value
    if comparison.operator == "=":
        return any_of(FILTER, terms_equal(field, [value]))
    if comparison.operator == "!=":
        return _unequal(field, value)
    terms = span(comparison)
    if terms is None:
        return any_of(ID, select(comparison))
    low, high = "gte" if terms.has_low else "gt", "lte" if terms.has_high else "lt"
    return {"range": {FILTER: {low: terms.low, high: terms.high}}}


def _unequal(field: str, value: Value) -> Json:
    if isinstance(value, bool):
        return any_of(FILTER, terms_equal(field, [not value]))
    typed = {"term": {FILTER: typed_term(field, value)}}
    return _bool(filter=[typed], must_not=[any_of(FILTER, terms_equal(field, [value]))])


def _bool(**parts: Sequence[Json]) -> Json:
    made: Json = {name: list(queries) for name, queries in parts.items() if queries}
    if "should" in made:
        made["minimum_should_match"] = 1
    return {"bool": made}


def _limited(parts: Iterable[tuple[Json, int]]) -> list[tuple[Json, int]]:
    return [(_as_text(query), 1) if n >= MOST_LEVELS else (query, n) for query, n in parts]


def _as_text(query: Json) -> Json:
    return {"wrapper": {"query": base64.b64encode(json.dumps(query).encode()).decode()}}
