"""Command output: messages, JSON and tables."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lexvla.errors import LexVLAError

__all__ = [
    "INTERRUPTED",
    "UsageError",
    "note",
    "one_line",
    "print_columns",
    "print_facts",
    "print_json",
    "print_numbers",
]

INTERRUPTED = 130  # exit code


class UsageError(LexVLAError):
    """The command was called in a way that is wrong whatever the data."""


def note(message: str) -> None:
    """Print a message to stderr that is not part of the result."""
    print(message, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """Print a result as JSON."""
    # Escape characters that the terminal cannot show, so that it stays valid JSON.
    escape = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(data, ensure_ascii=escape, indent=2, allow_nan=False))


def print_columns(rows: Iterable[Sequence[str]], indent: str = "") -> None:
    """Print rows as columns, aligned left; the caller aligns numbers."""
    table = [list(row) for row in rows]
    if not table:
        return
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print((indent + "  ".join(cells)).rstrip())


def print_numbers(rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a header; all columns but the first are numbers, aligned right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print_columns(
        (row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
        for row in rows
    )


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print named values, nested ones as ``outer.inner``."""
    print_columns(
        (name, f"{value:,}" if type(value) is int else str(value)) for name, value in _flat(facts)
    )


def one_line(text: str, width: int = 36) -> str:
    """Shorten a text to fit a table cell."""
    # A document's text may be long, and hold line breaks or terminal control codes.
    plain = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip()
    return plain if len(plain) <= width else plain[: width - 1] + "\u2026"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
