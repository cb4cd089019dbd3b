"""A filter as a condition over the manifest's documents.

SQLite decides where it is sure, and yields NULL where it is not; `Filter.matches` decides those
documents. It is not sure of numbers within a rounding error of one another, of strings with a
null character (its JSON functions cut them short), of metadata keys that its JSON paths cannot
name, and of very deep filters (its parser has a small stack). NULL passes through AND, OR and NOT
as it should: what does not depend on the unsure part is sure.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

from lexvla_indexer.filters import ATTRIBUTES, And, Comparison, Filter, In, Not, Or, Value, kind_of

__all__ = ["Condition", "condition", "path_of"]

_SURE_DEPTH = 12
_UNNAMEABLE = re.compile(r'["\\\x00-\x1f]')  # escaped in JSON
_ROUNDING = 1e-9  # relative; far above what SQLite's reading of decimals is off by
_TINY = 1e-290  # the same near 0
_ZERO = "\0"


class Condition(NamedTuple):
    """An SQL expression over a row of documents (1, 0, or NULL: unsure) and what to bind to it."""

    sql: str
    values: dict[str, str | int | float]


def condition(filter: Filter) -> Condition:  # noqa: A002 - the public word for it
    """Return a filter as an SQL expression. Fields and values are bound, never part of it."""
    writer = _Writer()
    tests = writer.tree(filter, 0)
    return Condition(_if(r"instr(metadata, '\u0000')", "NULL", tests), writer.values)


def path_of(field: str) -> str | None:
    """Return the JSON path of a metadata field, if it has one."""
    return f'$."{field}"' if field and not _UNNAMEABLE.search(field) else None


class _Writer:
    def __init__(self) -> None:
        self.values: dict[str, str | int | float] = {}

    def tree(self, node: Filter, depth: int) -> str:
        if depth > _SURE_DEPTH:
            return "NULL"
        if isinstance(node, Not):
            return f"(NOT {self.tree(node.part, depth + 1)})"
        if isinstance(node, And | Or):
            word = " AND " if isinstance(node, And) else " OR "
            return f"({word.join(self.tree(part, depth + 1) for part in node.parts)})"
        if isinstance(node, In):
            return self._field(node.field, _Equal(self, node.values))
        if not isinstance(node, Comparison):
            raise TypeError(f"not a filter: {node!r}")
        if node.operator == "=":
            return self._field(node.field, _Equal(self, (node.value,)))
        if node.operator == "!=":
            return self._field(node.field, _Unequal(self, (node.value,)))
        if node.operator in ("<", "<=", ">", ">="):
            return self._field(node.field, _Range(self, node.operator, node.value))
        raise TypeError(f"no SQL for {node!r}")

    def bind(self, value: str | float) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f":{name}"

    def _field(self, name: str, test: _Equal | _Range) -> str:
        named = path_of(name)
        if named is None:
            return "NULL"
        path = self.bind(named)
        held = f"json_extract(metadata, {path})"
        cases = {
            "text": test.string(held),
            "array": test.strings(f"json_each(metadata, {path})"),
            "integer": test.number(held),
            "real": test.number(held),
            "true": test.boolean(True),
            "false": test.boolean(False),
        }
        whens = " ".join(f"WHEN '{kind}' THEN {sql}" for kind, sql in cases.items() if sql != "0")
        kind = f"json_type(metadata, {path})"
        own = f"CASE {kind} {whens} ELSE 0 END" if whens else "0"
        return own if name not in ATTRIBUTES else _if(f"{kind} IS NULL", test.string(name), own)


class _Equal:
    """Test that a field is one of some values. Each method returns "0" for a plain no."""

    def __init__(self, writer: _Writer, values: Iterable[Value]) -> None:
        strings, numbers = [], []
        self._booleans = set()
        for value in values:
            if isinstance(value, str):
                strings.append(value)
            elif isinstance(value, bool):
                self._booleans.add(value)
            else:
                numbers.append(value)
        self._unsure = any(_ZERO in text for text in strings)
        self._strings = self._numbers = ""
        if strings and not self._unsure:
            self._strings = _list(writer, strings)
        if numbers:
            self._numbers = _list(writer, [int(n) for n in numbers if _fits(n) and n == int(n)])
            self._low = writer.bind(_near(min(numbers), -1))
            self._high = writer.bind(_near(max(numbers), 1))

    def string(self, held: str) -> str:
        if self._unsure:
            return "NULL"
        return f"({held} IN {self._strings})" if self._strings else "0"

    def strings(self, rows: str) -> str:
        if self._unsure:
            return "NULL"
        if not self._strings:
            return "0"
        return f"EXISTS (SELECT 1 FROM {rows} held WHERE held.value IN {self._strings})"  # noqa: S608

    def number(self, held: str) -> str:
        if not self._numbers:
            return "0"
        near = _if(f"{held} BETWEEN {self._low} AND {self._high}", "NULL", "0")
        return _if(f"typeof({held}) = 'integer'", f"{held} IN {self._numbers}", near)

    def boolean(self, held: bool) -> str:
        return str(int(held in self._booleans))


class _Unequal(_Equal):
    """Test that a field has the type of a value, and is not equal to it."""

    def __init__(self, writer: _Writer, values: tuple[Value]) -> None:
        super().__init__(writer, values)
        self._kind = kind_of(values[0])

    def string(self, held: str) -> str:
        return f"(NOT {super().string(held)})" if self._kind == "string" else "0"

    def strings(self, rows: str) -> str:
        return f"(NOT {super().strings(rows)})" if self._kind == "string" else "0"

    def number(self, held: str) -> str:
        return f"(NOT {super().number(held)})" if self._kind == "number" else "0"

    def boolean(self, held: bool) -> str:
        return str(int(self._kind == "boolean" and held not in self._booleans))


class _Range:
    """Test that a field is below or above a value of its own type."""

    def __init__(self, writer: _Writer, sign: str, value: Value) -> None:
        self._sign = sign
        self._kind = kind_of(value)
        self._is_huge = isinstance(value, int) and not _fits(value)
        if not self._is_huge:
            self._value = writer.bind(value)
        if not isinstance(value, str):
            self._low, self._high = writer.bind(_near(value, -1)), writer.bind(_near(value, 1))

    def string(self, held: str) -> str:
        return f"({held} {self._sign} {self._value})" if self._kind == "string" else "0"

    def strings(self, rows: str) -> str:
        return "0"

    def number(self, held: str) -> str:
        if self._kind != "number":
            return "0"
        if self._is_huge:
            return "NULL"
        is_near = f"typeof({held}) = 'real' AND {held} BETWEEN {self._low} AND {self._high}"
        return _if(is_near, "NULL", f"({held} {self._sign} {self._value})")

    def boolean(self, held: bool) -> str:
        return "0"


def _list(writer: _Writer, values: list[str] | list[int]) -> str:
    # Bound as one JSON array: SQLite takes a limited number of values.
    bound = writer.bind(json.dumps(values, ensure_ascii=False))
    return f"(SELECT value FROM json_each({bound}))"  # noqa: S608


def _fits(number: float) -> bool:
    """Return whether SQLite has such integers."""
    return -(2**63) <= number < 2**63


def _near(number: float, direction: int) -> float:
    """Return a number slightly below or above, or infinity."""
    try:
        value = float(number)
    except OverflowError:
        value = sys.float_info.max if number > 0 else -sys.float_info.max
    return value + direction * (abs(value) * _ROUNDING + _TINY)


def _if(test: str, yes: str, no: str) -> str:
    return f"CASE WHEN {test} THEN {yes} ELSE {no} END"
