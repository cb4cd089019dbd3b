r"""Filters as queries of Lucene, with the meaning of `Filter.matches`.

The field ``filter`` has a term for each thing that a comparison can ask of a document's field:

    NAME \x01\x03 s VALUE   a string           NAME \x01\x03 S   a string or a list of strings
    NAME \x01\x03 l VALUE   one of a list      NAME \x01\x03 N   a number
    NAME \x01\x03 n DIGITS  a number           NAME \x01\x03 b0  false, b1 true

In names and values a null character stands as \x01\x01 and \x01 as \x01\x02, which keeps their
order; of a string of over 200 characters the rest stands as its hash. The digits of a number are
in the order of the numbers, exactly, however large or small: see `digits`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Any

from indexer.base import Document
from indexer.filters import ATTRIBUTES, And, Comparison, Filter, In, Not, Or, Value, kind_of
from indexer.lucene.fields import END, FILTER, ID
from indexer.lucene.jvm import java_class

__all__ = ["any_of", "conditions", "digits", "selection"]

_SAFE = str.maketrans({"\0": "\x01\x01", "\x01": "\x01\x02"})
_OF = "\x01\x03"
_CUT = "\x01\x04"
LONGEST = 200  # characters of a string that are compared; beyond, its hash is
_LONGEST_LIMIT = 900  # bytes; Lucene takes ranges of terms of up to 1,000
_SEARCH = "org.apache.lucene.search."

Select = Callable[[Filter], Collection[str]]


def conditions(document: Document) -> str:
    """Return the terms of a document, one null character between two."""
    held = {name: getattr(document, name) for name in ATTRIBUTES} | dict(document.metadata)
    return END.join(term for name, value in held.items() for term in _terms(name, value))


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


def digits(number: float) -> str:
    """Return a number as text that is in the order of numbers, and equal for equal numbers.

    A number is ± 1.m x 2^e in binary: a digit for its sign, eight hexadecimal digits for e, and
    those of m without zeros at the end. Of negative numbers each digit is turned round, and a
    letter that is above all digits comes last.
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


_COMPLEMENT = str.maketrans("0123456789abcdef", "fedcba9876543210")


def selection(filter: Filter, select: Select) -> Any:  # noqa: A002 - the public word for it
    """Return a filter as a query of Lucene.

    Args:
        filter: What to choose.
        select: Return the ids of the documents that a filter chooses, by looking at each: for
            a range whose limit is a string of over 200 characters, or a number of over a thousand
            digits.
    """
    if isinstance(filter, And | Or):
        occurs = "FILTER" if isinstance(filter, And) else "SHOULD"
        return _boolean((occurs, selection(part, select)) for part in filter.parts)
    if isinstance(filter, Not):
        return _without(java_class(f"{_SEARCH}MatchAllDocsQuery")(), selection(filter.part, select))
    if isinstance(filter, In):
        return _equal(filter.field, filter.values)
    if not isinstance(filter, Comparison):
        raise TypeError(f"no filter: {filter!r}")
    if filter.operator == "=":
        return _equal(filter.field, [filter.value])
    if filter.operator == "!=":
        return _unequal(filter.field, filter.value)
    start, text = _limit(filter)
    is_cut = isinstance(filter.value, str) and len(filter.value) > LONGEST
    if is_cut or len(f"{start}{text}".encode()) > _LONGEST_LIMIT:
        return any_of(ID, select(filter))
    return _range(filter.operator, start, text)


def any_of(field: str, terms: Collection[str]) -> Any:
    """Return a query for documents that have one of the terms, of which there may be many.

    They cross over to Java in one piece.
    """
    if not terms:
        return java_class(f"{_SEARCH}MatchNoDocsQuery")()
    coded = (term.encode() for term in terms)
    listed = [{"bytes": base64.b64encode(t).decode(), "length": len(t)} for t in coded]
    values = _reader_of_terms().readValue(json.dumps(listed))
    signature = "(Ljava/lang/String;Ljava/util/Collection;)V"
    return java_class(f"{_SEARCH}TermInSetQuery")(field, values, signature=signature)


@cache
def _reader_of_terms() -> Any:
    """Return what reads a list of binary terms from JSON."""
    of_terms = java_class("org.apache.lucene.util.BytesRef")(b"").getClass()
    return java_class("com.fasterxml.jackson.databind.ObjectMapper")().readerForListOf(of_terms)


def _equal(field: str, values: Iterable[Value]) -> Any:
    start, terms = _escaped(field) + _OF, set()
    for value in values:
        if isinstance(value, str):
            text = _escaped(value)
            terms |= {f"{start}s{text}", f"{start}l{text}"}
        elif isinstance(value, bool):
            terms.add(f"{start}b{int(value)}")
        else:
            terms.add(f"{start}n{digits(value)}")
    return any_of(FILTER, terms)


def _unequal(field: str, value: Value) -> Any:
    if isinstance(value, bool):
        return _equal(field, [not value])
    mark = "S" if isinstance(value, str) else "N"
    return _without(any_of(FILTER, [f"{_escaped(field)}{_OF}{mark}"]), _equal(field, [value]))


def _limit(comparison: Comparison) -> tuple[str, str]:
    """Return what terms of the field and type start with, and the rest of that of the value."""
    value = comparison.value
    mark = "s" if kind_of(value) == "string" else "n"
    text = _escaped(value) if isinstance(value, str) else digits(value)
    return f"{_escaped(comparison.field)}{_OF}{mark}", text


def _range(sign: str, start: str, text: str) -> Any:
    is_below = sign.startswith("<")
    low, high = (start, start + text) if is_below else (start + text, _after(start))
    has_limit = sign.endswith("=")
    to_bytes = java_class("org.apache.lucene.util.BytesRef")
    return java_class(f"{_SEARCH}TermRangeQuery")(
        FILTER,
        to_bytes(low.encode()),
        to_bytes(high.encode()),
        is_below or has_limit,
        is_below and has_limit,
    )


def _after(start: str) -> str:
    return start[:-1] + chr(ord(start[-1]) + 1)


def _without(query: Any, but: Any) -> Any:
    return _boolean([("FILTER", query), ("MUST_NOT", but)])


def _boolean(parts: Iterable[tuple[str, Any]]) -> Any:
    occurs = java_class(f"{_SEARCH}BooleanClause$Occur")
    builder = java_class(f"{_SEARCH}BooleanQuery$Builder")()
    for name, query in parts:
        add_clause(builder, query, getattr(occurs, name))
    return builder.build()


def add_clause(builder: Any, query: Any, occurs: Any) -> None:
    """Add a query to those of a boolean one."""
    path = "org/apache/lucene/search/"
    result = f"L{path}BooleanQuery$Builder;"
    builder.add(query, occurs, signature=f"(L{path}Query;L{path}BooleanClause$Occur;){result}")
