"""A document: what an index keeps of an item beside its vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from lexvla.errors import InputError

__all__ = ["MAX_ID_BYTES", "Document", "MetadataValue", "check_id"]

MetadataValue = str | int | float | bool | list[str]

MAX_ID_BYTES = 512


def check_id(name: object) -> str:
    """Return a document id that every engine accepts.

    Raises:
        InputError: The id is not a string, is empty, holds a control character, or is longer than
            512 bytes as UTF-8 (Elasticsearch's limit).
    """
    if not isinstance(name, str):
        raise InputError(repr(name), "an id must be a string")
    if not name:
        raise InputError(name, "an id must not be empty")
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise InputError(name, "an id must not hold control characters such as a newline")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InputError(repr(name), "an id must be valid Unicode") from error
    if size > MAX_ID_BYTES:
        raise InputError(name, f"an id must be at most {MAX_ID_BYTES} bytes, not {size}")
    return name


@dataclass(frozen=True)
class Document:
    """Describe one item: what a hit shows beside its score.

    Args:
        id: Names the item within its index; see `check_id`.
        uri: An address, or a path, from the root of the item's source if it has one (see
            `lexvla_indexer.roots`); may be empty.
        text: The item's own text; may be empty.
        metadata: Flat values to filter by and to show: str, number, bool or list of str.
        fingerprint: The source's key and hashes of what was encoded and stored, so that an ingest
            can resume; may be empty.

    Raises:
        InputError: The id, the text or a metadata value is not allowed.
    """

    id: str
    uri: str = ""
    text: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_id(self.id)
        for key, value in self.metadata.items():
            is_list = isinstance(value, list) and all(isinstance(v, str) for v in value)
            if not is_list and not isinstance(value, str | int | float | bool):
                rule = f"metadata {key!r} must be a string, number, boolean or list of strings"
                raise InputError(self.id, rule)
        values = [self.uri, self.text, dict(self.metadata)]
        try:
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            rule = "its address, text and metadata must be valid Unicode"
            raise InputError(self.id, rule) from error
        except ValueError as error:
            raise InputError(self.id, "metadata numbers must be finite") from error
