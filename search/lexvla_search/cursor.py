"""The text that continues an answer: where it ended, and which query it answered.

It is base64 of a JSON list: a digest of the query, the rank of the last hit, and the last hit's
position if hits are in the order of metadata fields.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import NamedTuple, cast

from lexvla.errors import InputError
from lexvla_indexer.listing import Position
from lexvla_search.query import Query

__all__ = ["START", "Cursor", "read_cursor", "write_cursor"]

# What may change from page to page.
_FREE = ("k", "offset", "after", "facets", "image")
_to_json = json.JSONEncoder(sort_keys=True).encode


class Cursor(NamedTuple):
    """Where an answer ended: how many hits came, and the last one's position in such an order."""

    rank: int
    position: Position | None


START = Cursor(0, None)


def write_cursor(query: Query, picture: str, cursor: Cursor) -> str:
    """Return a cursor as text; ``picture`` names the query's image."""
    data = json.dumps([_digest(query, picture), *cursor], separators=(",", ":"))
    return base64.urlsafe_b64encode(data.encode()).decode().rstrip("=")


def read_cursor(query: Query, picture: str) -> Cursor:
    """Return the cursor that a query goes on after; `InputError` if it is of another query."""
    text = query.after
    if text is None:
        return START
    try:
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        digest, rank, position = json.loads(data)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError("after", "is not the next of an earlier answer") from error
    if digest != _digest(query, picture):
        rule = "is of another query: everything but k and facets must stay the same"
        raise InputError("after", rule)
    if not _is_rank(rank) or not _is_position(position, query):
        raise InputError("after", "is not the next of an earlier answer")
    return Cursor(rank, None if position is None else tuple(position))


def _digest(query: Query, picture: str) -> str:
    asked = {name: value for name, value in query.to_dict().items() if name not in _FREE}
    data = _to_json([asked, picture])
    return hashlib.sha256(data.encode()).hexdigest()[:24]


def _is_rank(rank: object) -> bool:
    return isinstance(rank, int) and not isinstance(rank, bool) and 0 < rank < 1 << 53


def _is_position(position: object, query: Query) -> bool:
    if query.is_scored and not query.sort:
        return position is None
    if not isinstance(position, list) or len(position) != len(query.sort) + 1:
        return False
    try:
        return all(key is None or cast(str, key).encode() for key in position[:-1]) and bool(
            position[-1].encode()
        )
    except (AttributeError, UnicodeEncodeError):
        return False
