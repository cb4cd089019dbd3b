"""A document of a user's own index, as `Document` has it.

Text is that of the attachment's text fields, as it is encoded; the address is that of its image
field. Metadata are all other fields but vectors, flattened:
``{"maker": {"name": "Zoe"}}`` becomes ``maker.name``. A list keeps its strings; one of a single
number or boolean becomes that. Left out are null, lists of several numbers or of values of several
types, and images that are not given by an address.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from lexvla_indexer.document import Document, MetadataValue
from lexvla_indexer.elastic.attachment import Attachment
from lexvla_indexer.elastic.layout import FIELD_OF, ID, PATCHES
from lexvla_indexer.elastic.product import Json

__all__ = ["attached_document", "joined_text", "own_source", "values_at"]

LONGEST_ADDRESS = 2048  # characters; longer ones are images as base64


def attached_document(
    name: str, source: Mapping[str, Any], attachment: Attachment, vectors: Collection[str]
) -> Document:
    """Return a document from its ``_source``; ``vectors`` are fields that nobody reads."""
    held: dict[str, list[Any]] = {}
    listed: set[str] = set()
    for path, value, is_listed in _leaves(source, {*attachment.own_fields, *vectors}):
        held.setdefault(path, []).append(value)
        if is_listed:
            listed.add(path)
    text = joined_text(
        (str(each).strip() for each in held.pop(path, []) if not isinstance(each, bool))
        for path in attachment.text_fields
    )
    image = held.pop(attachment.image_field, []) if attachment.image_field else []
    state = source.get(attachment.state_field) or {}
    metadata: dict[str, MetadataValue] = {}
    for path, values in held.items():
        if path not in listed:
            metadata[path] = values[0]
        elif all(isinstance(each, str) for each in values):
            metadata[path] = values
        elif len(values) == 1:
            metadata[path] = values[0]
    return Document(name, _address(image), text, metadata, state.get("fingerprint"))


def own_source(name: str, source: Mapping[str, Any], attachment: Attachment) -> Json:
    """Return the vectors of a document's ``_source`` by the names of our own indexes."""
    found = {ID: name, FIELD_OF["lexical"]: source.get(attachment.lexical_field)}
    if attachment.dense_field is not None:
        found[FIELD_OF["dense"]] = source.get(attachment.dense_field)
    return found | {PATCHES: (source.get(attachment.state_field) or {}).get("patches")}


def joined_text(fields: Iterable[Iterable[str]]) -> str:
    """Return the text of fields: the strings of each with spaces between, then blank lines."""
    return "\n\n".join(filter(None, (" ".join(filter(None, own)) for own in fields)))


def values_at(source: Any, path: str) -> Iterator[Any]:
    """Yield the values at a dotted path, whose dots may be in keys too, and through lists.

    Example:
        >>> [*values_at({"a.b": [{"c": 1}, {"c": [2, None]}]}, "a.b.c")]
        [1, 2]
    """
    if isinstance(source, list):
        for each in source:
            yield from values_at(each, path)
    elif not path:
        if source is not None:
            yield source
    elif isinstance(source, Mapping):
        for key, value in source.items():
            if path == key:
                yield from values_at(value, "")
            elif path.startswith(f"{key}."):
                yield from values_at(value, path[len(key) + 1 :])


def _leaves(
    value: Any, hidden: Collection[str], path: str = "", is_listed: bool = False
) -> Iterator[tuple[str, MetadataValue, bool]]:
    """Yield each value with its dotted path, and whether it is in a list."""
    if path in hidden or value is None:
        return
    if isinstance(value, Mapping):
        for key, own in value.items():
            yield from _leaves(own, hidden, f"{path}.{key}" if path else key, is_listed)
    elif isinstance(value, list):
        for own in value:
            yield from _leaves(own, hidden, path, True)
    else:
        yield path, value, is_listed


def _address(values: list[Any]) -> str:
    first = values[0] if values else ""
    if not isinstance(first, str) or len(first) > LONGEST_ADDRESS or first.startswith("data:"):
        return ""
    return first
