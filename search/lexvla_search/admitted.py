"""All documents that a query's conditions admit, whatever their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lexvla_indexer.base import Index
from lexvla_indexer.scope import Scope
from lexvla_search.candidates import bearers
from lexvla_search.encoded_query import EncodedQuery

__all__ = ["admitted"]

_READ = 1000  # documents whose words are read at a time


def admitted(
    index: Index, query: EncodedQuery, most: int | None = None
) -> tuple[Index, Scope] | None:
    """Return what a query's filter, bans and requirements admit, without its similar items.

    The scope is one of the index returned, which may be a view. Unless the engine has such views,
    the words of all documents that have a banned or required word are looked at; ``None`` if there
    are more than ``most`` of them.
    """
    constraints = query.constraints
    plain = Scope(query.filter, but=query.excluded)
    if not constraints:
        return index, plain
    view = index.constrained(constraints.banned, constraints.required)
    if view is not None:
        return view, plain
    deep = index.count() + 1 if most is None else most + 1
    named: set[str] | None = None
    for columns in constraints.required or [constraints.banned]:
        own = bearers(index, query, columns, deep)
        if len(own) < deep:
            named = own if named is None else named & own
    if named is None:
        return None
    kept = {name for name, allowed in _looked_at(index, query, sorted(named)) if allowed}
    if constraints.required:
        return index, Scope(only=kept - query.excluded)
    return index, Scope(query.filter, but=(named - kept) | query.excluded)


def _looked_at(
    index: Index, query: EncodedQuery, names: Sequence[str]
) -> Iterator[tuple[str, bool]]:
    for start in range(0, len(names), _READ):
        some = names[start : start + _READ]
        stored = index.vectors(some)
        for row, name in enumerate(some):
            yield name, query.constraints.allow_row(stored, row)
