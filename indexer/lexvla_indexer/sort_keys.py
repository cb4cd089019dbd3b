"""A metadata value as text that sorts as values do: what all engines order and count by.

    b0, b1    false, true
    n DIGITS  a number: see `lexvla_indexer.filter_terms.digits`
    s TEXT    a string, the first 200 characters of it

So booleans come first, then numbers, then strings by code point. A list has a key for each of its
strings.
"""

from __future__ import annotations

from lexvla_indexer.document import MetadataValue
from lexvla_indexer.filter_terms import digits, number_of
from lexvla_indexer.filters import Value

__all__ = ["LONGEST_KEY", "key_of", "keys_of", "value_of"]

LONGEST_KEY = 200  # characters of a string that are compared


def key_of(value: Value) -> str:
    """Return the key of one value."""
    if isinstance(value, str):
        return f"s{value[:LONGEST_KEY]}"
    return f"b{int(value)}" if isinstance(value, bool) else f"n{digits(value)}"


def keys_of(value: MetadataValue) -> list[str]:
    """Return the keys of a value, ascending and different; none of an empty list."""
    return sorted({key_of(each) for each in (value if isinstance(value, list) else [value])})


def value_of(key: str) -> Value:
    """Return the value of a key: of a longer string its start, and 2 for 2.0."""
    kind, rest = key[0], key[1:]
    if kind == "s":
        return rest
    return rest == "1" if kind == "b" else number_of(rest)
