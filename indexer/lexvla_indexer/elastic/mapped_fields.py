"""The fields of a user's own index: which can be compared, sorted, counted or read as text.

A field that cannot answer, such as a text, has others do it: its sub-field of type ``keyword``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.known_fields import check_known

__all__ = ["FieldKind", "MappedField", "MappedFields"]

FieldKind = Literal["boolean", "double", "keyword", "date"]

_KINDS: dict[str, FieldKind] = {
    **dict.fromkeys(("keyword", "constant_keyword", "wildcard", "ip", "version"), "keyword"),
    **dict.fromkeys(("long", "integer", "short", "byte", "unsigned_long"), "double"),
    **dict.fromkeys(("double", "float", "half_float", "scaled_float"), "double"),
    **dict.fromkeys(("date", "date_nanos"), "date"),
    "boolean": "boolean",
}
_ANALYSED = ("text", "search_as_you_type", "match_only_text")


@dataclass(frozen=True)
class MappedField:
    """A field, or the sub-field that answers for it.

    Attributes:
        name: What to ask the server for.
        kind: What its values are; dates come as text or as milliseconds.
        type: What the mapping says.
        is_ordered: Whether the server can sort by it and count its values.
    """

    name: str
    kind: FieldKind
    type: str
    is_ordered: bool


class MappedFields:
    """Find fields in a mapping, as the server returns it."""

    def __init__(self, place: object, mapping: Mapping[str, Any]) -> None:
        self._place = place
        self._found = dict(_flat(mapping.get("properties", {})))
        runtime = mapping.get("runtime", {})
        self._found |= {name: dict(described) for name, described in runtime.items()}

    def __contains__(self, field: str) -> bool:
        return field in self._found or self._flattened(field)

    def named(self, hidden: tuple[str, ...]) -> list[str]:
        """Return the fields that can be compared, but the hidden ones and what these contain."""
        starts = tuple(f"{each}." for each in hidden)
        names = (name for name in self._found if not f"{name}.".startswith(starts))
        return [name for name in names if self._answering(name) is not None]

    def vectors(self) -> list[str]:
        """Return the fields that hold vectors or bytes, which nobody reads."""
        types = ("dense_vector", "sparse_vector", "rank_vectors", "binary")
        return [name for name, described in self._found.items() if described.get("type") in types]

    def comparable(self, field: str, purpose: str, hidden: tuple[str, ...] = ()) -> MappedField:
        """Return the field that answers comparisons of another, or of itself.

        Raises:
            InputError: There is no such field.
            UnsupportedError: The server cannot compare its values.
        """
        check_known([field], purpose, self.__contains__, lambda: self.named(hidden), ("id",))
        if field not in self._found:  # a key of an object of type flattened
            return MappedField(field, "keyword", "flattened", True)
        found = self._answering(field)
        if found is None:
            raise UnsupportedError(f"{self._place}: {self._why_not(field)} to {purpose}")
        return found

    def ordered(self, field: str, purpose: str, hidden: tuple[str, ...] = ()) -> MappedField:
        """Return the field to sort or count by for another, or for itself; errors as above."""
        found = self.comparable(field, purpose, hidden)
        if not found.is_ordered:
            rule = f"{field!r} has no doc_values to {purpose}"
            raise UnsupportedError(f"{self._place}: {rule}")
        return found

    def has_words(self, field: str) -> bool:
        """Return whether a field can be searched by words."""
        try:
            return bool(self.text(field))
        except (InputError, UnsupportedError):
            return False

    def text(self, field: str) -> Json:
        """Return the mapping of a field that can be searched by words.

        Raises:
            InputError: There is no such field, or it is of another type.
            UnsupportedError: It scores in a way of its own, so that its scores have no limit.
        """
        if field not in self._found:
            texts = [n for n, each in self._found.items() if each.get("type") in _ANALYSED]
            rule = f"there is no such field to look for words; there are {', '.join(texts)}"
            raise InputError(field, rule)
        described = self._found[field]
        kind = described.get("type")
        if kind not in (*_ANALYSED, "keyword") or described.get("is_nested"):
            nested = " within nested documents" if described.get("is_nested") else ""
            rule = f"is of type {kind}{nested}; words are looked for in text and keyword"
            raise InputError(field, rule)
        if described.get("index") is False:
            raise InputError(field, "is not indexed: nothing can be looked for in it")
        if described.get("similarity", "BM25") not in ("BM25", "boolean"):
            rule = f"{field!r} has a similarity of its own; only BM25 and boolean can be fused"
            raise UnsupportedError(f"{self._place}: {rule}")
        return described

    def _answering(self, field: str) -> MappedField | None:
        """Return the field or its first sub-field that can be compared, ``keyword`` before all."""
        described = self._found[field]
        if described["type"] == "alias":
            return self._answering(described["path"])
        if described["type"] in _KINDS:
            return _compared(field, described)
        subs = sorted(described.get("fields", {}), key=lambda name: (name != "keyword", name))
        found = (_compared(f"{field}.{sub}", self._found[f"{field}.{sub}"]) for sub in subs)
        return next((each for each in found if each is not None), None)

    def _why_not(self, field: str) -> str:
        described = self._found[field]
        kind = described["type"]
        if described.get("is_nested"):
            return f"{field!r} is in nested documents, which have no one value"
        if kind in _ANALYSED:
            return f"{field!r} is of type {kind} and has no sub-field of type keyword"
        if kind in _KINDS:
            return f"{field!r} is neither indexed nor has it doc_values"
        return f"{field!r} is of type {kind}, which has no value"

    def _flattened(self, field: str) -> bool:
        parts = field.split(".")
        starts = (".".join(parts[:end]) for end in range(1, len(parts)))
        return any(self._found.get(start, {}).get("type") == "flattened" for start in starts)


def _compared(name: str, described: Mapping[str, Any]) -> MappedField | None:
    kind = _KINDS.get(described["type"])
    is_indexed = described.get("index", True) is not False
    is_ordered = described.get("doc_values", True) is not False
    if kind is None or described.get("is_nested") or not (is_indexed or is_ordered):
        return None
    return MappedField(name, kind, described["type"], is_ordered)


def _flat(
    properties: Mapping[str, Any], prefix: str = "", is_nested: bool = False
) -> Iterator[tuple[str, Json]]:
    """Give each field of a mapping by its dotted path, sub-fields too."""
    for name, described in properties.items():
        path = prefix + name
        if "properties" in described:
            is_within = is_nested or described.get("type") == "nested"
            yield from _flat(described["properties"], f"{path}.", is_within)
        elif "type" in described:
            yield path, {**described, "is_nested": is_nested}
            for sub, own in described.get("fields", {}).items():
                yield f"{path}.{sub}", {**own, "sub_of": path, "is_nested": is_nested}
