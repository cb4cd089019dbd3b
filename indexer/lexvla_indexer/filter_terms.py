r"""Filters as terms: what engines with an inverted index store of a document for them.

A document has a term for each thing that a comparison can ask of one of its fields:

    NAME \x01\x03 s VALUE   a string           NAME \x01\x03 S   a string or a list of strings
    NAME \x01\x03 l VALUE   one of a list      NAME \x01\x03 N   a number
    NAME \x01\x03 n DIGITS  a number           NAME \x01\x03 b0  false, b1 true

In names and values \x01\x01 stands for a null character and \x01\x02 for \x01, which keeps their
order; what follows the first 200 characters of a string is replaced by a hash of the string. The
digits of a number sort exactly as the numbers do, however large or small: see `digits`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lexvla_indexer.document import Document
from lexvla_indexer.filters import ATTRIBUTES, Comparison, Value, kind_of

__all__ = [
    "LONGEST",
    "Span",
    "digits",
    "listed_fields",
    "number_of",
    "span",
    "starts_of_values",
    "terms_equal",
    "terms_of",
    "terms_of_field",
    "typed_term",
]

LONGEST = 200  # characters of a string that are compared; beyond them, its hash
LONGEST_LIMIT = 900  # bytes; Lucene takes ranges of terms of up to 1,000

_SAFE = str.maketrans({"\0": "\x01\x01", "\x01": "\x01\x02"})
_OF = "\x01\x03"
_CUT = "\x01\x04"
_COMPLEMENT = str.maketrans("0123456789abcdef", "fedcba9876543210")


class Span(NamedTuple):
    """The terms from ``low`` to ``high`` in the order of their UTF-8, with or without these two."""

    low: str
    high: str
    has_low: bool
    has_high: bool


def terms_of(document: Document) -> Iterator[str]:
    """Yield the terms of a document."""
    held = {name: getattr(document, name) for name in ATTRIBUTES} | dict(document.metadata)
    for name, value in held.items():
        yield from _terms(name, value)


def _terms(name: str, value: Value | list[str]) -> Iterable[str]:
    start = _escaped(name) + _OF
    if isinstance(value, list):
        yield f"{start}S"
        yield from (f"{start}l{_escaped(text)}" for text in set(value))
    elif isinstance(value, str):
        yield f"{start}S"
        yield f"{start}s{_escaped(value)}"
    elif isinstance(value, bool):
        yield f"{start}b{int(value)}"
    else:
        yield f"{start}N"
        yield f"{start}n{digits(value)}"


def _escaped(text: str) -> str:
    if len(text) <= LONGEST:
        return text.translate(_SAFE)
    rest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[:LONGEST].translate(_SAFE)}{_CUT}{rest}"


def terms_of_field(field: str) -> list[str]:
    """Return the terms of which a document has one if it has the field."""
    return [f"{_escaped(field)}{_OF}{kind}" for kind in ("S", "N", "b0", "b1")]


def starts_of_values(field: str) -> list[str]:
    """Return what terms start with of which a document has one if the field has a value.

    An empty list is none.
    """
    return [f"{_escaped(field)}{_OF}{kind}" for kind in "slnb"]


def listed_fields(next_term: Callable[[str], str | None]) -> Iterator[str]:
    """Give the metadata fields that terms are of; of a name of over 200 characters, its start.

    Args:
        next_term: Return the first term after a text, if there is one.
    """
    term = next_term("")
    while term is not None:
        name = term.partition(_OF)[0]
        field = name.partition(_CUT)[0].replace("\x01\x01", "\0").replace("\x01\x02", "\x01")
        if field not in ATTRIBUTES:
            yield field
        term = next_term(name + _OF + "\U0010ffff")


def digits(number: float) -> str:
    """Return a number as text that sorts as numbers do, and is equal for equal numbers.

    A number is ± 1.m × 2^e in binary: a digit for its sign, eight hexadecimal digits for e, and
    those of m without trailing zeros. For a negative number each digit is complemented, and a
    letter that sorts after all digits comes last.
    """
    above, below = number.as_integer_ratio()
    if above == 0:
        return "8"
    size = abs(above)
    exponent = size.bit_length() - below.bit_length()
    size >>= (size & -size).bit_length() - 1
    bits = size.bit_length() - 1
    width = -(-bits // 4)
    rest = (size - (1 << bits)) << (4 * width - bits)
    text = f"{exponent + (1 << 31):08x}" + (f"{rest:0{width}x}" if width else "")
    if above > 0:
        return f"9{text}"
    return f"7{text.translate(_COMPLEMENT)}g"


def number_of(text: str) -> int | float:
    """Return the number that `digits` wrote: a whole one as an integer."""
    if text == "8":
        return 0
    sign = 1 if text[0] == "9" else -1
    rest = text[1:] if sign > 0 else text[1:-1].translate(_COMPLEMENT)
    exponent, bits = int(rest[:8], 16) - (1 << 31), 4 * len(rest[8:])
    size = sign * ((1 << bits) + int(rest[8:] or "0", 16))
    if exponent >= bits:
        return size << (exponent - bits)
    below = 1 << (bits - exponent)
    return size / below if size % below else size // below


def terms_equal(field: str, values: Iterable[Value]) -> set[str]:
    """Return terms of which a document has at least one if its field equals one of the values."""
    start, terms = _escaped(field) + _OF, set()
    for value in values:
        if isinstance(value, str):
            text = _escaped(value)
            terms |= {f"{start}s{text}", f"{start}l{text}"}
        elif isinstance(value, bool):
            terms.add(f"{start}b{int(value)}")
        else:
            terms.add(f"{start}n{digits(value)}")
    return terms


def typed_term(field: str, value: Value) -> str:
    """Return the term of documents whose field holds strings, or a number, as the value does."""
    return f"{_escaped(field)}{_OF}{'S' if isinstance(value, str) else 'N'}"


def span(comparison: Comparison) -> Span | None:
    """Return the span in which a document has a term if a range matches it.

    ``None`` if terms cannot decide: the limit is a string of over 200 characters, or its term is
    too long.
    """
    value = comparison.value
    mark = "s" if kind_of(value) == "string" else "n"
    text = _escaped(value) if isinstance(value, str) else digits(value)
    start = f"{_escaped(comparison.field)}{_OF}{mark}"
    is_cut = isinstance(value, str) and len(value) > LONGEST
    if is_cut or len(f"{start}{text}".encode()) > LONGEST_LIMIT:
        return None
    limit, end = start + text, start[:-1] + chr(ord(start[-1]) + 1)
    match comparison.operator:
        case "<" | "<=" as sign:
            return Span(start, limit, True, sign == "<=")
        case ">" | ">=" as sign:
            return Span(limit, end, sign == ">=", False)
    raise TypeError(f"not a range: {comparison!r}")
