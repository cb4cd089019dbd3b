"""Filters as Lucene queries, with the meaning of `Filter.matches`.

The field ``filter`` has the terms of `lexvla_indexer.filter_terms`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Any

from lexvla_indexer.filter_terms import span, terms_equal, typed_term
from lexvla_indexer.filters import And, Comparison, Filter, In, Not, Or, Value
from lexvla_indexer.lucene.jvm import java_class
from lexvla_indexer.lucene.layout import FILTER, ID
from lexvla_indexer.scope import Scope

__all__ = ["any_of", "narrowed", "scoped", "selection"]

_SEARCH = "org.apache.lucene.search."

Select = Callable[[Filter], Collection[str]]


def selection(filter: Filter, select: Select) -> Any:  # noqa: A002 - the public word for it
    """Return a filter as a Lucene query.

    ``select`` returns the ids of the documents that a filter chooses, by looking at each: for a
    range whose limit is a string of over 200 characters, or a number of over a thousand digits.
    """
    if isinstance(filter, And | Or):
        occurs = "FILTER" if isinstance(filter, And) else "SHOULD"
        return _boolean((occurs, selection(part, select)) for part in filter.parts)
    if isinstance(filter, Not):
        return _without(java_class(f"{_SEARCH}MatchAllDocsQuery")(), selection(filter.part, select))
    if isinstance(filter, In):
        return any_of(FILTER, terms_equal(filter.field, filter.values))
    if not isinstance(filter, Comparison):
        raise TypeError(f"not a filter: {filter!r}")
    if filter.operator == "=":
        return any_of(FILTER, terms_equal(filter.field, [filter.value]))
    if filter.operator == "!=":
        return _unequal(filter.field, filter.value)
    return _range(filter, select)


def any_of(field: str, terms: Collection[str]) -> Any:
    """Return a query for documents that have one of the terms, of which there may be many.

    They cross over to Java in one piece.
    """
    if not terms:
        return java_class(f"{_SEARCH}MatchNoDocsQuery")()
    coded = (term.encode() for term in terms)
    listed = [{"bytes": base64.b64encode(t).decode(), "length": len(t)} for t in coded]
    values = _reader_of_terms().readValue(json.dumps(listed))
    signature = "(Ljava/lang/String;Ljava/util/Collection;)V"
    return java_class(f"{_SEARCH}TermInSetQuery")(field, values, signature=signature)


def scoped(scope: Scope, chosen: Any) -> Any:
    """Return a query for the documents of a scope, whose filter another query stands for."""
    parts = [("FILTER", java_class(f"{_SEARCH}MatchAllDocsQuery")() if chosen is None else chosen)]
    if scope.only is not None:
        parts.append(("FILTER", any_of(ID, scope.only)))
    if scope.but:
        parts.append(("MUST_NOT", any_of(ID, scope.but)))
    return _boolean(parts)


def narrowed(query: Any, chosen: Any) -> Any:
    """Return a query for only those hits that another query chooses."""
    return _boolean([("MUST", query), ("FILTER", chosen)])


@cache
def _reader_of_terms() -> Any:
    of_terms = java_class("org.apache.lucene.util.BytesRef")(b"").getClass()
    return java_class("com.fasterxml.jackson.databind.ObjectMapper")().readerForListOf(of_terms)


def _unequal(field: str, value: Value) -> Any:
    if isinstance(value, bool):
        return any_of(FILTER, terms_equal(field, [not value]))
    equal = any_of(FILTER, terms_equal(field, [value]))
    return _without(any_of(FILTER, [typed_term(field, value)]), equal)


def _range(comparison: Comparison, select: Select) -> Any:
    terms = span(comparison)
    if terms is None:
        return any_of(ID, select(comparison))
    to_bytes = java_class("org.apache.lucene.util.BytesRef")
    return java_class(f"{_SEARCH}TermRangeQuery")(
        FILTER,
        to_bytes(terms.low.encode()),
        to_bytes(terms.high.encode()),
        terms.has_low,
        terms.has_high,
    )


def _without(query: Any, but: Any) -> Any:
    return _boolean([("FILTER", query), ("MUST_NOT", but)])


def _boolean(parts: Iterable[tuple[str, Any]]) -> Any:
    occurs = java_class(f"{_SEARCH}BooleanClause$Occur")
    builder = java_class(f"{_SEARCH}BooleanQuery$Builder")()
    path = "org/apache/lucene/search/"
    signature = f"(L{path}Query;L{path}BooleanClause$Occur;)L{path}BooleanQuery$Builder;"
    for name, query in parts:
        builder.add(query, getattr(occurs, name), signature=signature)
    return builder.build()
