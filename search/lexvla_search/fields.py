"""The metadata fields of an index: what one may filter, sort and count by."""

from __future__ import annotations

from typing import cast

from lexvla.errors import UnsupportedError
from lexvla_indexer.base import Index
from lexvla_indexer.facets import MAX_FACETS, MAX_VALUES, Facet
from lexvla_indexer.filters import Value, kind_of
from lexvla_search import schema

__all__ = ["fields_of"]

READ = 100  # documents; a field that none of these has is not described


def fields_of(index: Index) -> list[schema.Field] | None:
    """Describe the fields of the first 100 documents, at most 32 of them, that can be counted.

    ``distinct`` is at most 1,000, for as many or more; ``low`` and ``high`` are of numbers.
    ``None`` if the engine can neither list documents nor count their values.
    """
    try:
        documents = index.list_documents(limit=READ).documents
    except UnsupportedError:
        return None
    names = list(dict.fromkeys(name for each in documents for name in each.metadata))[:MAX_FACETS]
    return [field for name in names if (field := _counted(index, name)) is not None]


def _counted(index: Index, name: str) -> schema.Field | None:
    try:
        counts = index.facets([Facet(name, MAX_VALUES)])[name]
    except UnsupportedError:  # of a user's own index, which was not made to count all its fields
        return None
    return _field(index, name, [value for value, _ in counts.values])


def _field(index: Index, name: str, values: list[Value]) -> schema.Field:
    kinds = {kind_of(value) for value in values}
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    low = high = None
    if kind == "number":
        numbers = values if len(values) < MAX_VALUES else _ends(index, name)
        low, high = cast(float, min(numbers)), cast(float, max(numbers))
    return {"name": name, "kind": kind, "distinct": len(values), "low": low, "high": high}


def _ends(index: Index, name: str) -> list[Value]:
    ends = (index.list_documents(sort=sort, limit=1).documents[0] for sort in (name, f"-{name}"))
    return [cast(Value, document.metadata[name]) for document in ends]
