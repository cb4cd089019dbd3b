"""A document of a user's own index, as `Document` has it.

Text is that of the attachment's text fields, a blank line between them; the address is that of
its image field. Metadata are all other fields but vectors, flattened:
``{"maker": {"name": "Zoe"}}`` becomes ``maker.name``. A list keeps its strings; one of a single
number or boolean becomes that. Left out are null, lists of several numbers or of values of several
types, and images that are not given by an address.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lexvla_indexer.document import Document, MetadataValue
from lexvla_indexer.elastic.attachment import Attachment
from lexvla_indexer.elastic.layout import FIELD_OF, ID, PATCHES, Fields

__all__ = ["attached_document", "own_source"]

Json = dict[str, Any]

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
    texts = (held.pop(path, []) for path in attachment.text_fields)
    parts = (" ".join(each for each in own if isinstance(each, str)) for own in texts)
    text = "\n\n".join(filter(None, parts))
    image = held.pop(attachment.image_field, []) if attachment.image_field else []
    state = value_at(source, attachment.state_field) or {}
    metadata: dict[str, MetadataValue] = {}
    for path, values in held.items():
        if path not in listed:
            metadata[path] = values[0]
        elif all(isinstance(each, str) for each in values):
            metadata[path] = values
        elif len(values) == 1:
            metadata[path] = values[0]
    return Document(name, _address(image), text, metadata, state.get("fingerprint"))


def own_source(name: str, source: Mapping[str, Any], fields: Fields) -> Json:
    """Return the vectors of a document's ``_source`` by the names of our own indexes."""
    found = {FIELD_OF[leg]: value_at(source, path) for leg, path in fields.legs.items()}
    return {ID: name, **found, PATCHES: value_at(source, fields.patches)}


def value_at(source: Any, path: str) -> Any:
    """Return what is at a dotted path, whose dots may be in keys too; ``None`` if nothing is.

    Example:
        >>> value_at({"a.b": {"c": 1}}, "a.b.c"), value_at({"a": {"b": 2}}, "a.b")
        (1, 2)
    """
    if not isinstance(source, Mapping):
        return None
    if path in source:
        return source[path]
    for key, value in source.items():
        if path.startswith(f"{key}."):
            found = value_at(value, path[len(key) + 1 :])
            if found is not None:
                return found
    return None


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
