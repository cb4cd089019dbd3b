"""The one filter grammar of all engines: which documents a search may find.

    year >= 2020 and not (tag in (cat, "wild cat") or draft = true)

``docs/filters.md`` describes the grammar for users. Each engine translates filters in its
``selection.py``, and in each a filter means what `Filter.matches` says:

- A comparison matches values of its own type only: strings, numbers (integers and floats) and
  booleans never mix. Neither ``year = "2020"`` nor ``year != "2020"`` matches the number 2020.
- A document without the field matches no comparison, not even ``!=``, but matches its ``not``.
- A list of strings matches ``=`` and ``in`` if any of its strings does, ``!=`` if none of them is
  equal, and never a range.
- ``id``, ``uri`` and ``text`` mean the document's own, unless its metadata has a key of that name.
- Strings are ordered by code point; numbers are compared exactly.
"""

from __future__ import annotations

import json
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NoReturn, cast

from lexvla.errors import FilterSyntaxError
from lexvla_indexer.document import Document, MetadataValue
from lexvla_indexer.known_fields import check_known

__all__ = [
    "ATTRIBUTES",
    "And",
    "Comparison",
    "Filter",
    "In",
    "Not",
    "Or",
    "Value",
    "check_fields",
    "kind_of",
]

Value = str | int | float | bool
Kind = Literal["string", "number", "boolean"]
Operator = Literal["=", "!=", "<", "<=", ">", ">="]

TAKEN = "taken"  # when a photograph was taken, as `lexvla index` reads it of the file
ATTRIBUTES = ("id", "uri", "text")  # of a document, usable as fields

MAX_LENGTH = 16 * 1024 * 1024  # characters: 100,000 ids of 160 characters
MAX_COMPARISONS = 256
MAX_VALUES = 200_000  # of all `in` lists together
MAX_DEPTH = 32  # of parentheses and `not`

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Filter(ABC):
    """Choose documents: one of the immutable nodes below."""

    @staticmethod
    def parse(text: str) -> Filter:
        """Read a filter.

        It may have 16,777,216 characters, 256 comparisons, 200,000 values in all ``in`` lists
        together, and 32 levels of parentheses and ``not``.

        Raises:
            FilterSyntaxError: The text is not a filter, or exceeds these limits. The message names
                the text, the column (from 1) and what was expected there.
        """
        return _Parser(text).parse()

    @abstractmethod
    def matches(self, document: Document) -> bool:
        """Return whether the filter chooses a document."""


@dataclass(frozen=True)
class Comparison(Filter):
    """Compare a field with one value."""

    field: str
    operator: Operator
    value: Value

    def matches(self, document: Document) -> bool:
        """Return whether the field holds such a value of the same type."""
        held = _read(document, self.field)
        if held is None:
            return False
        if isinstance(held, list):
            if self.operator == "!=":
                return isinstance(self.value, str) and self.value not in held
            return self.operator == "=" and self.value in held
        if kind_of(held) != kind_of(self.value):
            return False
        return _OPERATORS[self.operator](held, self.value)


@dataclass(frozen=True)
class In(Filter):
    """Match a field that equals one of some values: ``field in (...)``."""

    field: str
    values: tuple[Value, ...]

    def matches(self, document: Document) -> bool:
        """Return whether the field holds one of the values."""
        held = _read(document, self.field)
        if held is None:
            return False
        if isinstance(held, list):
            return any(("string", text) in self._typed for text in held)
        return (kind_of(held), held) in self._typed

    @cached_property
    def _typed(self) -> frozenset[tuple[Kind, Value]]:
        return frozenset((kind_of(value), value) for value in self.values)  # because True equals 1


@dataclass(frozen=True)
class And(Filter):
    """Match what every part matches: ``and``."""

    parts: tuple[Filter, ...]

    def matches(self, document: Document) -> bool:
        """Return whether every part matches."""
        return all(part.matches(document) for part in self.parts)


@dataclass(frozen=True)
class Or(Filter):
    """Match what at least one part matches: ``or``."""

    parts: tuple[Filter, ...]

    def matches(self, document: Document) -> bool:
        """Return whether any part matches."""
        return any(part.matches(document) for part in self.parts)


@dataclass(frozen=True)
class Not(Filter):
    """Match what the part does not match: ``not``."""

    part: Filter

    def matches(self, document: Document) -> bool:
        """Return whether the part does not match."""
        return not self.part.matches(document)


def kind_of(value: Value) -> Kind:
    """Return the type of a value as filters see it: a boolean is not a number."""
    if isinstance(value, str):
        return "string"
    return "boolean" if isinstance(value, bool) else "number"


def check_fields(
    filter: Filter,  # noqa: A002 - the public word for it
    has: Callable[[str], bool],
    listed: Callable[[], Iterable[str] | None],
) -> None:
    """Refuse a filter on a metadata field that no document has.

    Args:
        filter: What may be asked.
        has: Tell whether a document has a field.
        listed: Return all fields; ``None`` if there are no documents, so that nothing is known.

    Raises:
        InputError: No document has such a field; the rule names those that exist.
    """
    check_known(_fields(filter), "filter by", has, listed, ATTRIBUTES)


def meant(part: Comparison | In) -> Filter:
    """Return what people mean by a comparison of the time ``taken`` with a year, month or day.

    That is a whole period: ``taken <= 2024`` has all of that year, ``taken = 2024-06`` all of June.
    """
    if part.field != TAKEN:
        return part
    if isinstance(part, In):
        periods = [meant(Comparison(TAKEN, "=", value)) for value in part.values if _period(value)]
        return Or((part, *periods)) if periods else part
    start, sign = _period(part.value), part.operator
    if not start:
        return part
    first, last = Comparison(TAKEN, ">=", start), Comparison(TAKEN, "<", f"{start}~")  # after T
    same = Comparison(TAKEN, sign, start)
    if sign in ("=", "!="):
        inside = And((first, last))
        period: Filter = Or((same, inside)) if sign == "=" else And((same, Not(inside)))
    else:
        period = {
            "<": same,
            "<=": last,
            ">": Comparison(TAKEN, ">=", f"{start}~"),
            ">=": first,
        }[sign]
    # A document of another source may have a number.
    return period if part.value == start else Or((part, period))


def _period(value: Value) -> str:
    """Return the start of the times in a year, month or day; empty for anything else."""
    text = str(value)
    is_year = kind_of(value) == "number" and re.fullmatch(r"[1-9][0-9]{3}", text)
    is_part = isinstance(value, str) and re.fullmatch(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?", text)
    return text if is_year or is_part else ""


def _fields(filter: Filter) -> Iterator[str]:  # noqa: A002
    if isinstance(filter, And | Or):
        for part in filter.parts:
            yield from _fields(part)
    elif isinstance(filter, Not):
        yield from _fields(filter.part)
    elif isinstance(filter, Comparison | In):
        yield filter.field


def _read(document: Document, field: str) -> MetadataValue | None:
    if field in document.metadata:
        return document.metadata[field]
    return cast(str, getattr(document, field)) if field in ATTRIBUTES else None


_TOKEN = re.compile(
    r"""\s*+(?:
        (?P<string>"(?:[^"\\]++|\\.)*+")
      | (?P<sign><=|>=|!=|[=<>(),])
      | (?P<word>[^\s()=!<>,"'\\\x00-\x1f\x7f]++)
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"\s*+")
_KEYWORDS = ("and", "or", "not", "in", "true", "false")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LIKE_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class _Parser:
    """Parse tokens by recursive descent.

    ::

        or         = and {"or" and}
        and        = part {"and" part}
        part       = "not" part | "(" or ")" | comparison
        comparison = field ("=" | "!=" | "<" | "<=" | ">" | ">=") value
                   | field "in" "(" [value {"," value}] ")"
        field      = word | string
        value      = word | string | number | "true" | "false"
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise FilterSyntaxError(f"a filter must be a string, not {type(text).__name__}")
        self._text = text
        self._end = 0  # of the token
        self._at = 0  # where the token starts
        self._kind = ""
        self._token = ""
        self._comparisons = 0
        self._values = 0
        self._depth = 0
        if len(text) > MAX_LENGTH:
            self._fail(f"at most {MAX_LENGTH:,} characters", f"{len(text):,}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self._fail("valid Unicode", at=error.start)

    def parse(self) -> Filter:
        self._advance()
        tree = self._or()
        if self._kind != "end":
            self._fail("'and', 'or' or the end")
        return tree

    def _or(self) -> Filter:
        parts = [self._and()]
        while self._skip("word", "or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Filter:
        parts = [self._part()]
        while self._skip("word", "and"):
            parts.append(self._part())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _part(self) -> Filter:
        at = self._at
        is_not = self._skip("word", "not")
        if not is_not and not self._skip("sign", "("):
            return self._comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"at most {MAX_DEPTH} levels of parentheses and 'not'", "more", at)
        if is_not:
            tree: Filter = Not(self._part())
        else:
            tree = self._or()
            if not self._skip("sign", ")"):
                self._fail("'and', 'or' or ')'")
        self._depth -= 1
        return tree

    def _comparison(self) -> Filter:
        if not self._is_text():
            self._fail("a field, 'not' or '('")
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            rule = f"at most {MAX_COMPARISONS} comparisons (write many values with 'in')"
            self._fail(rule, "more")
        field = self._unquoted()
        if self._skip("word", "in"):
            return meant(In(field, self._list()))
        if self._kind != "sign" or self._token not in _OPERATORS:
            self._fail("=, !=, <, <=, >, >= or 'in'")
        sign = cast(Operator, self._token)
        self._advance()
        at, found = self._at, self._found()
        value = self._value()
        if isinstance(value, bool) and sign not in ("=", "!="):
            self._fail(f"a number or a string after {sign}", found, at)
        return meant(Comparison(field, sign, value))

    def _list(self) -> tuple[Value, ...]:
        if not self._skip("sign", "("):
            self._fail("'('")
        if self._skip("sign", ")"):
            return ()
        values: list[Value] = []
        while True:
            self._values += 1
            if self._values > MAX_VALUES:
                self._fail(f"at most {MAX_VALUES:,} values", "more")
            values.append(self._value())
            if self._skip("sign", ")"):
                return tuple(values)
            if not self._skip("sign", ","):
                self._fail("',' or ')'")

    def _value(self) -> Value:
        word = self._token
        if self._kind == "word" and word in ("true", "false"):
            self._advance()
            return word == "true"
        if not self._is_text():
            self._fail("a value")
        if self._kind == "word" and _LIKE_NUMBER.fullmatch(word):
            return self._number()
        return self._unquoted()

    def _number(self) -> int | float:
        form = _NUMBER.fullmatch(self._token)
        if form is None:
            self._fail("a number as JSON writes it, or a string in quotes")
        try:
            number = float(self._token) if form[1] or form[2] else int(self._token)
        except ValueError:  # Python does not parse integers of over 4,300 digits
            number = math.inf
        if number in (math.inf, -math.inf):
            self._fail("a number nearer to 0")
        self._advance()
        return number

    def _unquoted(self) -> str:
        text = self._token
        if self._kind == "string":
            text = self._unescaped() if "\\" in text else text[1:-1]
        self._advance()
        return text

    def _unescaped(self) -> str:
        try:
            text = str(json.loads(self._token, strict=False))
        except json.JSONDecodeError as error:
            self._fail("an escape as in JSON", at=self._at + error.pos)
        try:
            text.encode()
        except UnicodeEncodeError:
            self._fail("valid Unicode")
        return text

    def _is_text(self) -> bool:
        return self._kind == "string" or (self._kind == "word" and self._token not in _KEYWORDS)

    def _skip(self, kind: str, token: str) -> bool:
        if self._kind != kind or self._token != token:
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            space = _SPACE.match(self._text, self._end)
            self._at = space.end() if space else self._end
            found = self._text[self._at]
            if found == '"':
                self._fail('a closing " of the string that starts here', "the end")
            if found == "!":
                self._fail("!=", "'!'")
            self._fail("a field, a value or a sign (strings stand in double quotes)", repr(found))
        self._kind = str(match.lastgroup)
        self._token = match[self._kind]
        self._at, self._end = match.span(self._kind)

    def _found(self) -> str:
        text = self._token if len(self._token) <= 40 else self._token[:37] + "..."
        return "the end" if self._kind == "end" else repr(text)

    def _fail(self, expected: str, found: str = "", at: int | None = None) -> NoReturn:
        place = self._at if at is None else at
        if at is not None and not found:
            found = repr(self._text[at : at + 2] if self._text[at] == "\\" else self._text[at])
        where = f"filter {_around(self._text, place)}, column {place + 1}"
        raise FilterSyntaxError(f"{where}: expected {expected}, found {found or self._found()}")


def _around(text: str, at: int) -> str:
    start = 0 if at < 80 else at - 40
    piece = text[start : start + 120]
    before, after = "..." * (start > 0), "..." * (start + 120 < len(text))
    return repr(f"{before}{piece}{after}")
