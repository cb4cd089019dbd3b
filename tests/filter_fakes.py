"""Random filters, and documents for them, out of what is hard to compare or to quote."""

from __future__ import annotations

import json
from typing import get_args

from hypothesis import strategies as st

from lexvla_indexer import Document
from lexvla_indexer.filters import And, Comparison, Filter, In, Not, Operator, Or

FIELDS = (
    "year",
    "tag",
    "a.b",
    'a"b',
    "a\\b",
    "$",
    "$.year",
    "[0]",
    '$."year"',
    "é",
    "日本",
    "a b",
    "in",
    "",
    "\x01",
    "\0",
    "\x7f",
    "%",
    "'",
    "?1",
    "id",
    "uri",
    "text",
)
STRINGS = (
    "",
    "a",
    "cat",
    "Cat",
    'a"b',
    "a\\b",
    "\\u0000",
    "a'; DROP TABLE documents; --",
    "é",
    "\uffff",
    "\U0001f600",
    "\x01\n",
    "\0",
    "a\0b",
    "1",
    "2020",
    "true",
    "null",
    "[]",
    "d1",
)
NUMBERS = (
    *(0, 1, -1, 2020, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, -(2**63), -(2**63) - 1),
    *(10**30, 10**30 + 1, 10**400, -(10**400), 0.0, -0.0, 1.0, 2020.0, 0.5, 0.1, 0.3, 0.1 + 0.2),
    *(2.0**53, 2.0**63, -(2.0**63), 1e22, 1e30, 1.7976931348623157e308, 5e-324, 1e-300, 1 / 3),
)

fields = st.sampled_from(FIELDS)
strings = st.sampled_from(STRINGS) | st.text(max_size=3)
numbers = (
    st.sampled_from(NUMBERS) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
values = strings | numbers | st.booleans()
OPERATORS = get_args(Operator)

comparisons = st.one_of(
    st.builds(Comparison, fields, st.sampled_from(OPERATORS), strings | numbers),
    st.builds(Comparison, fields, st.sampled_from(["=", "!="]), st.booleans()),
    st.builds(In, fields, st.lists(values, max_size=4).map(tuple)),
)
# A filter may only be on fields that some document has.
EVERY = Document("e", metadata=dict.fromkeys(FIELDS, True))


def _parts(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[tuple[Filter, ...]]:
    return st.lists(inner, min_size=2, max_size=3).map(tuple)


filters = st.recursive(
    comparisons,
    lambda inner: (
        st.builds(Not, inner) | st.builds(And, _parts(inner)) | st.builds(Or, _parts(inner))
    ),
    max_leaves=6,
)
metadata = st.dictionaries(fields, values | st.lists(strings, max_size=3), max_size=6)
documents = st.lists(
    st.builds(Document, st.just("d"), uri=strings, text=strings, metadata=metadata),
    min_size=1,
    max_size=8,
)


def written(tree: Filter) -> str:
    """Return a text that is read as this tree."""
    if isinstance(tree, Comparison):
        return f"{json.dumps(tree.field)}{tree.operator}{json.dumps(tree.value)}"
    if isinstance(tree, In):
        return f"{json.dumps(tree.field)} in ({', '.join(map(json.dumps, tree.values))})"
    if isinstance(tree, Not):
        return f"not {_in_brackets(tree.part)}"
    assert isinstance(tree, And | Or)
    word = " and " if isinstance(tree, And) else " or "
    return word.join(_in_brackets(part) for part in tree.parts)


def _in_brackets(tree: Filter) -> str:
    return f"({written(tree)})" if isinstance(tree, And | Or) else written(tree)
