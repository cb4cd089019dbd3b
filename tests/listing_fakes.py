"""Listings and facets by brute force over documents, to hold engines against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cmp_to_key
from typing import Any

from lexvla_indexer import Document
from lexvla_indexer.facets import Facet
from lexvla_indexer.filters import Filter
from lexvla_indexer.scope import Scope

CUT = 200  # characters of a string that count


def typed(value: Any) -> tuple[int, Any]:
    """Return a value so that it compares with those of other types: booleans, numbers, strings."""
    if isinstance(value, str):
        return 2, value[:CUT]
    return (0, value) if isinstance(value, bool) else (1, value)


def values(document: Document, field: str) -> list[tuple[int, Any]]:
    """Return the different values of a field, ascending."""
    if field not in document.metadata:
        return []
    held = document.metadata[field]
    return sorted({typed(value) for value in (held if isinstance(held, list) else [held])})


def chosen(documents: Sequence[Document], scope: Scope) -> list[Document]:
    tree = None if scope.filter is None else Filter.parse(scope.filter)
    return [
        document
        for document in documents
        if (tree is None or tree.matches(document))
        and (scope.only is None or document.id in scope.only)
        and document.id not in scope.but
    ]


def listed(documents: Sequence[Document], scope: Scope, sort: Sequence[str]) -> list[str]:
    """Return all ids in order."""

    def compare(one: Document, other: Document) -> int:
        for name in sort:
            field, down = name.removeprefix("-"), name.startswith("-")
            mine, its = values(one, field), values(other, field)
            if not mine or not its:
                if mine or its:
                    return -1 if mine else 1
                continue
            first, second = (mine[-1], its[-1]) if down else (mine[0], its[0])
            if first != second:
                return -1 if (first < second) != down else 1
        return -1 if one.id < other.id else 1

    return [d.id for d in sorted(chosen(documents, scope), key=cmp_to_key(compare))]


def counted(documents: Sequence[Document], scope: Scope, facet: Facet) -> dict[str, Any]:
    """Return what `FacetCounts.to_dict` should."""
    held = [values(document, facet.field) for document in chosen(documents, scope)]
    missing = sum(not own for own in held)
    if facet.ranges is not None:
        ranges = []
        for each in facet.asked_ranges:
            kind, _ = typed(each.high if each.low is None else each.low)
            count = 0
            for own in held:
                count += any(
                    k == kind
                    and (each.low is None or typed(each.low) <= (k, v))
                    and (each.high is None or (k, v) < typed(each.high))
                    for k, v in own
                )
            ranges.append({"from": each.low, "to": each.high, "count": count})
        return {"ranges": ranges, "missing": missing}
    counts = Counter(value for own in held for value in own)
    best = sorted(counts, key=lambda value: (-counts[value], value))
    shown = [{"value": v[1], "count": counts[v]} for v in best[: facet.limit]]
    other = sum(counts[value] for value in best[facet.limit :])
    return {"values": shown, "other": other, "missing": missing}
