"""A Hugging Face dataset as a source of items to index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexvla.data.hf_datasets import class_name, image_of, load_dataset, undecoded
from lexvla.errors import InputError
from lexvla_indexer.document import Document, check_id
from lexvla_indexer.item_source import ItemSource, ListedItem, UnlistedItem
from lexvla_indexer.report import Reject
from lexvla_indexer.roots import SourcePlace
from lexvla_indexer.text_fields import TextFields, as_text

__all__ = ["HUGGING_FACE", "DatasetChoice", "HuggingFaceSource"]

HUGGING_FACE = "hf:"  # the prefix of such names


@dataclass(frozen=True)
class DatasetChoice:
    """Choose what to read of a dataset.

    Attributes:
        split: The name of the split.
        config: The name of the configuration, if there are several.
        image_field: An Image feature, the bytes of files, or paths; ``image`` if it is there.
        id_field: ``id`` if it is there, else items are called ``SPLIT/ROW``, with rows from 0.
    """

    split: str = "train"
    config: str | None = None
    image_field: str | None = None
    id_field: str | None = None


class HuggingFaceSource(ItemSource):
    """Rows as items: ``hf:NAME`` or ``hf:NAME@REVISION`` on the hub, or ``hf:FOLDER`` here.

    The text is that of ``text_field``, by default ``text`` if it is there; of a list of strings,
    each is a line. Other columns of strings, numbers, dates, classes and lists of strings are
    metadata.

    Raises:
        InputError: The dataset cannot be read, or a column is missing.
        OptionalDependencyError: The ``datasets`` library is missing.
    """

    def __init__(
        self, address: str, text_field: str | None = None, choice: DatasetChoice | None = None
    ) -> None:
        self._choice = choice = choice or DatasetChoice()
        name = address.removeprefix(HUGGING_FACE)
        is_here = Path(name).exists()
        repository, _, revision = (name, "", "") if is_here else name.partition("@")
        loaded = load_dataset(
            repository, choice.split, config=choice.config, revision=revision or None
        )
        self._folder = Path(name).resolve() if is_here else Path()
        part = ":".join(filter(None, (choice.config, choice.split)))
        place = (
            SourcePlace(str(self._folder), part)
            if is_here
            else SourcePlace(HUGGING_FACE, f"{name}:{part}")
        )
        super().__init__(place)
        self._address = address
        self._features = loaded.features
        self._image = self._column(choice.image_field, "image")
        self._id = self._column(choice.id_field, "id")
        self._texts = TextFields(text_field or "text")
        if text_field is not None or self._image is None:
            for each in self._texts.names:
                self._column(each, "")
        used = {self._image, self._id, *self._texts.names}
        self._metadata = [
            each
            for each in loaded.column_names
            if each not in used and _is_metadata(self._features[each])
        ]
        chosen = [each for each in loaded.column_names if each in used or each in self._metadata]
        self._rows = undecoded(loaded.select_columns(chosen), self._image)

    def entries(self) -> Iterator[ListedItem | UnlistedItem]:
        """Yield the items in the order of the rows."""
        for number, row in enumerate(self._rows):
            name, where = f"{self._choice.split}/{number}", f"{self._address} row {number}"
            known = name if self._id is None else None
            try:
                if self._id is not None:
                    if row[self._id] is None:
                        raise InputError(name, "has no id")
                    known = name = check_id(str(row[self._id]))
                yield self._item(row, name, where)
            except InputError as error:
                yield UnlistedItem(Reject(error.item, error.rule, where), known)

    def count(self) -> int:
        """Return how many rows there are."""
        return len(self._rows)

    def _item(self, row: dict[str, Any], name: str, where: str) -> ListedItem:
        image = None if self._image is None else image_of(row[self._image], name, self._folder)
        text = self._texts.text(lambda field: as_text(row.get(field), field, name, "\n"))
        if image is None and not text.strip():
            raise InputError(name, "has neither an image nor a text")
        metadata = {each: class_name(self._features[each], row[each]) for each in self._metadata}
        if image is not None:
            where += f", column {self._image!r}"
        return ListedItem(Document(name, self._uri(image), text, metadata), image, where)

    def _uri(self, image: bytes | Path | None) -> str:
        if not isinstance(image, Path):
            return ""  # nothing can open a row by a path
        path = Path(os.path.normpath(image))
        inside = path.is_relative_to(self._folder)
        return path.relative_to(self._folder).as_posix() if inside else str(path)

    def _column(self, asked: str | None, usual: str) -> str | None:
        if asked is None:
            return usual if usual in self._features else None
        if asked not in self._features:
            there = ", ".join(self._features)
            raise InputError(self._address, f"has no column {asked!r}; it has {there}")
        return asked


def _is_metadata(feature: Any) -> bool:
    from datasets import ClassLabel, List, Value

    if isinstance(feature, List):
        return isinstance(feature.feature, Value) and "string" in feature.feature.dtype
    if isinstance(feature, ClassLabel):
        return True
    # Bytes, decimals and durations are no values that filters compare.
    plain = ("bool", "int", "uint", "float", "string", "large_string", "date", "timestamp")
    return isinstance(feature, Value) and feature.dtype.startswith(plain)
