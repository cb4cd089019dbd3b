"""The errors that a server's refusals mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lexvla.errors import (
    EngineUnavailableError,
    IndexMissingError,
    InputError,
    LexVLAError,
    UnsupportedError,
)
from lexvla_indexer.elastic.product import Place

__all__ = [
    "NoAnswerError",
    "PassingError",
    "ShardError",
    "UnreadValueError",
    "cause_of",
    "innermost",
    "refusal",
]

_PASSING = (408, 429, 502, 503, 504)  # HTTP: it may work later


class PassingError(EngineUnavailableError):
    """The server cannot do it now, but may at the next try."""


class NoAnswerError(PassingError):
    """No server answers."""


class ShardError(PassingError):
    """A shard cannot answer now."""


class UnreadValueError(InputError):
    """The server cannot read a value that a field is compared with, such as a date."""


def refusal(place: Place, status: int, body: Any) -> LexVLAError:
    """Return the error that an HTTP status and body of the server mean."""
    kind, reason = cause_of(body)
    said = ": ".join(part for part in (kind, reason) if part) or f"HTTP {status}"
    if status in (401, 403) and "block" not in kind:
        if "license" in reason or "license" in kind:
            return UnsupportedError(f"{place}: the server's licence does not cover this: {reason}")
        return EngineUnavailableError(
            f"{place}: not allowed; set {place.product.secrets}. It says: {said}"
        )
    if "maxClauseCount" in reason or "too_many" in kind:
        return UnsupportedError(f"{place}: the query has too many words for the server: {reason}")
    if status == 404 and "index_not_found" in kind:
        return IndexMissingError(place)
    cannot = f"{place}: the server cannot do it now: {said}"
    # A node that goes away takes along what it was about to answer; other copies have it too.
    if status == 503 or "search_context_missing" in kind or kind.startswith("node_"):
        return ShardError(cannot)
    if status in _PASSING:
        return PassingError(cannot)
    if (kind == "parse_exception" and "date" in reason) or "not an IP string" in reason:
        return UnreadValueError(str(place), f"the server cannot read a value: {reason}")
    if status >= 500 or "block" in kind:
        return EngineUnavailableError(cannot)
    return LexVLAError(f"{place}: the server refuses: {said}")


def cause_of(body: Any) -> tuple[str, str]:
    """Return the kind and the reason of an error, the innermost that the server reports."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return "", _short(error or "")
    roots = error.get("root_cause") or [error]
    root = roots[0] if isinstance(roots[0], Mapping) else error
    kind = str(root.get("type") or error.get("type") or "")
    cause = error.get("caused_by") or root.get("caused_by") or {}
    while isinstance(cause.get("caused_by"), Mapping):
        cause = cause["caused_by"]
    reason = str(root.get("reason") or "")
    if inner := str(cause.get("reason") or ""):
        reason = reason if inner in reason else f"{reason}: {inner}" if reason else inner
    return kind, _short(reason)


def innermost(error: Exception) -> str:
    """Return what the errors that the client nests are about, without their names."""
    before, mark, text = str(error).rpartition("caused by: ")
    if mark:
        # Each of them puts parentheses around the rest.
        depth = before.count("caused by: ") + 1
        text = text.partition("(")[2].removesuffix(")" * depth)
    return _short(re.sub(r"<[^<>]* object at 0x[0-9a-f]+>: ", "", text))


def _short(text: object) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= 500 else words[:497] + "..."
