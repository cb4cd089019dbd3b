"""A manifest as a source of items to index: a file with an item on each line or row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lexvla.errors import InputError
from lexvla_indexer.document import Document, check_id
from lexvla_indexer.item_source import ItemSource, ListedItem, UnlistedItem
from lexvla_indexer.manifest_rows import READERS, TABLES
from lexvla_indexer.report import Reject
from lexvla_indexer.roots import SourcePlace
from lexvla_indexer.text_fields import TextFields

__all__ = ["ManifestSource"]

_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+://|data:")


class ManifestSource(ItemSource):
    """The lines of a manifest; images are paths from its folder.

    InputError if the file cannot be read as what its suffix says.
    """

    def __init__(self, path: Path, text_field: str) -> None:
        self._folder = path.parent.resolve()
        self._path = self._folder / path.name
        super().__init__(SourcePlace(str(self._folder), path.name))
        self._text_fields = TextFields(text_field)
        kind = path.suffix.lower()
        self._read, self._is_table = READERS[kind], kind in TABLES
        if self._is_table:
            self._check_text_fields()

    def _check_text_fields(self) -> None:
        """Read the names of the columns; InputError if a text field other than ``text`` is none."""
        records = (record for _, record in self._read(self._path))
        columns = next((each for each in records if isinstance(each, dict)), None)
        if columns is None:
            return
        for field in self._text_fields.names:
            name = field.removeprefix("metadata.")
            is_there = name in columns or (name != field and "metadata" in columns)
            if not is_there and field != "text":
                rule = f"has no column {name!r}; its columns are {', '.join(map(repr, columns))}"
                raise InputError(str(self._path), rule)

    def entries(self) -> Iterator[ListedItem | UnlistedItem]:
        """Yield the items in the order of the lines."""
        unit = "row" if self._path.suffix.lower() == ".parquet" else "line"
        for number, record in self._read(self._path):
            where = f"{self._path}:{number}"
            if isinstance(record, InputError):
                yield UnlistedItem(Reject(record.item, record.rule, where), None)
            else:
                yield self._entry(record, f"{unit} {number}", where)

    def _entry(self, record: dict[str, Any], name: str, where: str) -> ListedItem | UnlistedItem:
        known = None
        try:
            own = record.get("id", record.get("_id"))  # _id is BEIR's
            if own is None:
                raise InputError(name, "has no id")
            known = name = check_id(own)
            for value in record.values():
                if isinstance(value, InputError):
                    raise InputError(name, value.rule)
            image = _field(record, "image", str, name)
            metadata = self._metadata(record, name)
            text = self._text_fields.text(partial(_text, record, metadata, name))
            if not image and not text.strip():
                where_from = " or ".join(map(repr, self._text_fields.names))
                raise InputError(name, f"has neither an image nor a text (in {where_from})")
            if not image:
                return ListedItem(Document(name, "", text, metadata), None, where)
            if _URL.match(image):
                raise InputError(name, "image must be the path of a file, not a URL")
            path = Path(os.path.normpath(self._folder / image))
            inside = path.is_relative_to(self._folder)
            uri = path.relative_to(self._folder).as_posix() if inside else os.path.normpath(image)
            return ListedItem(Document(name, uri, text, metadata), path, where)
        except InputError as error:
            return UnlistedItem(Reject(error.item, error.rule, where), known)

    def _metadata(self, record: dict[str, Any], name: str) -> dict[str, Any]:
        metadata: dict[str, Any] = _field(record, "metadata", dict, name)
        if self._is_table:
            used = {"id", "image", "metadata", *self._text_fields.names}
            metadata = {**metadata, **{k: v for k, v in record.items() if k not in used}}
        return {key: value for key, value in metadata.items() if value is not None}


def _field(record: dict[str, Any], key: str, kind: type[Any], name: str) -> Any:
    value = record.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InputError(name, f"{key} must be {'a string' if kind is str else 'an object'}")
    return value


def _text(record: dict[str, Any], metadata: dict[str, Any], name: str, field: str) -> str:
    of_metadata = field.removeprefix("metadata.")
    if of_metadata == field:
        return str(_field(record, field, str, name))
    value = metadata.get(of_metadata)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) for each in values):
        raise InputError(name, f"{field} must be a string or a list of strings, to be a text")
    return " ".join(values)
