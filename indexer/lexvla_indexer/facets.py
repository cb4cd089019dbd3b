"""Facets: how many of some documents have each value of a metadata field, or one in a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lexvla.errors import InputError
from lexvla_indexer.filters import Value
from lexvla_indexer.sort_keys import key_of

__all__ = ["Facet", "FacetCounts", "Range", "facets_of"]

MAX_FACETS = 32
MAX_VALUES = 1000
MAX_RANGES = 100

Limit = str | int | float | None


@dataclass(frozen=True)
class Range:
    """Values from ``low``, included, to ``high``, excluded; ``None`` for no limit."""

    low: Limit
    high: Limit

    @property
    def keys(self) -> tuple[str, str]:
        """The first key of the range, and the first after it."""
        kind = "s" if isinstance(self.high if self.low is None else self.low, str) else "n"
        low = kind if self.low is None else key_of(self.low)
        return low, chr(ord(kind) + 1) if self.high is None else key_of(self.high)


@dataclass(frozen=True)
class Facet:
    """What to count in a metadata field: its most frequent values, or ranges.

    Args:
        field: A key of the documents' metadata.
        limit: How many values to list, from 1 to 1,000.
        ranges: Count these instead: pairs of a lower limit, included, and an upper limit,
            excluded and above it, both numbers or both strings; ``None`` for no limit. A range of
            strings counts a document with a list if any of its strings lies within it.

    Raises:
        InputError: One of these breaks its rule.
    """

    field: str
    limit: int = 10
    ranges: Sequence[Range | tuple[Limit, Limit]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.field, str) or not self.field:
            raise InputError("facets", f"a field must have a name, not {self.field!r}")
        limit = self.limit
        is_whole = isinstance(limit, int) and not isinstance(limit, bool)
        if not is_whole or not 1 <= limit <= MAX_VALUES:
            rule = f"the limit of a facet must be a whole number from 1 to {MAX_VALUES:,}"
            raise InputError(self.field, f"{rule}, not {limit!r}")
        if self.ranges is not None:
            object.__setattr__(self, "ranges", self._ranges(self.ranges))

    def _ranges(self, ranges: object) -> tuple[Range, ...]:
        if not isinstance(ranges, Sequence) or isinstance(ranges, str) or not ranges:
            raise InputError(self.field, f"ranges must be a list of pairs, not {ranges!r}")
        if len(ranges) > MAX_RANGES:
            raise InputError(self.field, f"at most {MAX_RANGES} ranges, not {len(ranges)}")
        return tuple(self._range(each) for each in ranges)

    def _range(self, given: object) -> Range:
        if isinstance(given, Range):
            given = (given.low, given.high)
        pair = tuple(given) if isinstance(given, list | tuple) else ()
        rule = "a range must be two numbers or two strings, one of which may be missing"
        if len(pair) != 2 or not all(each is None or _is_limit(each) for each in pair):
            raise InputError(self.field, f"{rule}, not {given!r}")
        kinds = {isinstance(each, str) for each in pair if each is not None}
        if len(kinds) != 1:
            raise InputError(self.field, f"{rule}, not {given!r}")
        made = Range(*pair)
        if None not in pair and made.keys[0] >= made.keys[1]:
            raise InputError(self.field, f"a range must end above where it begins, not {given!r}")
        return made

    @property
    def asked_ranges(self) -> tuple[Range, ...]:
        """The ranges to count; none for a facet of values."""
        return cast(tuple[Range, ...], self.ranges or ())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.ranges is None:
            return {"field": self.field, "limit": self.limit}
        ranges = [[each.low, each.high] for each in self.asked_ranges]
        return {"field": self.field, "ranges": ranges}


@dataclass(frozen=True)
class FacetCounts:
    """How many documents have each value or range of a field.

    Attributes:
        values: For a facet of values: the most frequent ones with their counts, equal counts by
            value. A document with a list counts once for each of its strings.
        other: The counts of all further values, added up.
        ranges: For a facet of ranges: each with its count, in the order asked for.
        missing: How many documents have no value: no such field, or an empty list.
    """

    values: Sequence[tuple[Value, int]] = ()
    other: int = 0
    ranges: Sequence[tuple[Range, int]] | None = None
    missing: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.ranges is not None:
            counted = [{"from": r.low, "to": r.high, "count": n} for r, n in self.ranges]
            return {"ranges": counted, "missing": self.missing}
        values = [{"value": value, "count": count} for value, count in self.values]
        return {"values": values, "other": self.other, "missing": self.missing}


def facets_of(given: object) -> tuple[Facet, ...]:
    """Read facets: each a field, a `Facet`, or its settings by name.

    Raises:
        InputError: They break a rule, or a field is asked for twice.
    """
    if isinstance(given, str | Facet | Mapping):
        given = [given]
    if not isinstance(given, Sequence):
        raise InputError("facets", f"must be a list of fields, not {given!r}")
    if len(given) > MAX_FACETS:
        raise InputError("facets", f"must be at most {MAX_FACETS}, not {len(given)}")
    made: dict[str, Facet] = {}
    for each in given:
        facet = _facet(each)
        if facet.field in made:
            raise InputError(facet.field, "is given twice in facets")
        made[facet.field] = facet
    return tuple(made.values())


def _facet(given: object) -> Facet:
    if isinstance(given, Facet):
        return given
    if isinstance(given, str):
        return Facet(given)
    if not isinstance(given, Mapping) or "field" not in given:
        rule = "must be fields, or settings with a field, limit and ranges"
        raise InputError("facets", f"{rule}, not {given!r}")
    for name in given:
        if name not in ("field", "limit", "ranges"):
            raise InputError(str(name), "is not a setting of a facet: field, limit, ranges")
    return Facet(**given)


def _is_limit(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)
