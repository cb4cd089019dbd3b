"""Documents in the order of metadata fields, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lexvla.errors import InputError
from lexvla_indexer.document import Document

__all__ = ["Listed", "Order", "Position", "orders"]

MAX_ORDERS = 8

# Where a document stands: the key (`lexvla_indexer.sort_keys`) of each field sorted by, None if it
# has none, and its id.
Position = tuple[str | None, ...]


class Order(NamedTuple):
    """A field to sort by."""

    field: str
    descending: bool


class Listed(NamedTuple):
    """Documents in order, with the position of each."""

    documents: list[Document]
    positions: list[Position]


def orders(sort: str | Sequence[str]) -> tuple[Order, ...]:
    """Return what to sort by: ``year`` means ascending, ``-year`` descending.

    Raises:
        InputError: A field is not named, is named twice, or there are more than eight.
    """
    names = [sort] if isinstance(sort, str) else sort
    if not isinstance(names, Sequence):
        raise InputError("sort", f"must be a field or a list of fields, not {sort!r}")
    made: list[Order] = []
    for name in names:
        if not isinstance(name, str) or not name.removeprefix("-"):
            raise InputError("sort", f"must be the name of a field, such as -year, not {name!r}")
        order = Order(name.removeprefix("-"), name.startswith("-"))
        if order.field in [other.field for other in made]:
            raise InputError(order.field, "is given twice to sort by")
        made.append(order)
    if len(made) > MAX_ORDERS:
        raise InputError("sort", f"must be at most {MAX_ORDERS} fields, not {len(made)}")
    return tuple(made)
