"""A document: what an index keeps of an item beside its vectors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import cast

import numpy as np

from lexvla.errors import InputError

__all__ = ["MAX_ID_BYTES", "Document", "MetadataValue", "check_id", "plain_value"]

MetadataValue = str | int | float | bool | list[str]

MAX_ID_BYTES = 16_384  # a path of 4,096 bytes as `id_of_path` writes it
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def check_id(name: object) -> str:
    """Return a document id; Elasticsearch accepts shorter ones only.

    Raises:
        InputError: The id is not a string, is empty, holds a control character, or is longer than
            16,384 bytes as UTF-8.
    """
    if not isinstance(name, str):
        raise InputError(repr(name), "an id must be a string")
    if not name:
        raise InputError(name, "an id must not be empty")
    if _CONTROL.search(name):
        raise InputError(name, "an id must not hold control characters such as a newline")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InputError(repr(name), "an id must be valid Unicode") from error
    if size > MAX_ID_BYTES:
        raise InputError(name, f"an id must be at most {MAX_ID_BYTES:,} bytes, not {size}")
    return name


@dataclass(frozen=True, init=False)
class Document:
    """Describe one item: what a hit shows beside its score.

    ``None`` stands for an absent address, text, fingerprint, metadata or metadata value.

    Args:
        id: Names the item within its index; see `check_id`.
        uri: An address, or a path, from the root of the item's source if it has one (see
            `lexvla_indexer.roots`).
        text: The item's own text.
        metadata: Flat values to filter by and to show: str, number, bool or list of str. numpy
            scalars become plain ones; dates and times become ISO 8601 text, and times with a zone
            are converted to UTC, so that they are ordered as text.
        fingerprint: The source's key and hashes of what was encoded and stored, so that an ingest
            can resume.

    Raises:
        InputError: The id, the address, the text or a metadata value is not allowed.
    """

    id: str
    uri: str
    text: str
    metadata: Mapping[str, MetadataValue]
    fingerprint: str

    def __init__(
        self,
        id: str,  # noqa: A002 - the public word for it
        uri: str | os.PathLike[str] | None = "",
        text: str | None = "",
        metadata: Mapping[str, MetadataValue | date | np.generic | None] | None = None,
        fingerprint: str | None = "",
    ) -> None:
        check_id(id)
        address = os.fspath(uri) if isinstance(uri, os.PathLike) else uri
        strings = {"uri": address, "text": text, "fingerprint": fingerprint}
        for name, value in strings.items():
            if value is not None and not isinstance(value, str):
                raise InputError(id, f"its {name} must be a string, not {type(value).__name__}")
        plain = _plain_metadata(id, metadata)
        # A search makes one for each hit: a frozen class sets attribute by attribute, slowly.
        made = {name: value or "" for name, value in strings.items()}
        vars(self).update(made, id=id, metadata=plain)
        try:
            f"{self.uri}{self.text}".encode()
            if plain:
                _to_json(plain).encode()
        except UnicodeEncodeError as error:
            rule = "its address, text and metadata must be valid Unicode"
            raise InputError(id, rule) from error


# Made once: for many documents, making it takes longer than using it.
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _plain_metadata(name: str, metadata: object) -> dict[str, MetadataValue]:
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InputError(
            name, f"its metadata must be values by name, not {type(metadata).__name__}"
        )
    plain = {}
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise InputError(name, f"names of metadata must be strings, not {key!r}")
        if value is not None:
            plain[key] = _plain(name, key, value)
    return plain


def _plain(name: str, key: str, value: object) -> MetadataValue:
    if type(value) in (str, int, bool):  # most are, and need no more
        return cast("MetadataValue", value)
    # NaN and NaT, and nothing else, differ from themselves.
    if isinstance(value, float | date | np.generic) and value != value:
        raise InputError(
            name, f"metadata {key!r} is {value}; leave out a missing value, or give None"
        )
    value = plain_value(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(name, f"metadata {key!r} is {value}, but a number must be finite")
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    rule = f"metadata {key!r} must be a string, number, boolean, date or list of strings"
    found = type(value).__name__
    if isinstance(value, list):
        other = next(each for each in value if not isinstance(each, str))
        found = "a list with null" if other is None else f"a list with {type(other).__name__}"
    raise InputError(name, f"{rule}, not {found}")


def plain_value(value: object) -> object:
    """Return a numpy scalar as a plain one, and a date or time as ISO 8601 text.

    Times with a zone are converted to UTC. Any other value is returned as it is.
    """
    if isinstance(value, np.datetime64) and isinstance(value.item(), int):
        value = value.astype("datetime64[us]")  # nanoseconds, which numpy gives as a number
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return value.isoformat() if isinstance(value, date) else value
