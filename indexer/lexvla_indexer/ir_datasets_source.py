"""The documents of a collection that ir_datasets knows by name, as a source of items to index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from lexvla.errors import InputError, OptionalDependencyError
from lexvla_indexer.document import Document
from lexvla_indexer.item_source import ItemSource, ListedItem, UnlistedItem
from lexvla_indexer.report import Reject
from lexvla_indexer.roots import SourcePlace
from lexvla_indexer.text_fields import TextFields, as_text

__all__ = ["IR_DATASETS", "IrDatasetsSource", "load_ir_dataset"]

IR_DATASETS = "ir_datasets:"  # the prefix of such names


def load_ir_dataset(address: str, *parts: Literal["docs", "queries", "qrels"]) -> Any:
    """Load a dataset such as ``ir_datasets:beir/scifact/test`` that has these parts.

    Raises:
        InputError: There is no such dataset, or it lacks a part.
        OptionalDependencyError: ir_datasets is not installed.
    """
    try:
        import ir_datasets
    except ModuleNotFoundError as error:
        raise OptionalDependencyError("ir_datasets", "ir-datasets") from error
    try:
        dataset = ir_datasets.load(address.removeprefix(IR_DATASETS))
    except KeyError as error:
        raise InputError(address, "ir_datasets has no dataset of this name") from error
    if missing := [part for part in parts if not dataset.has(part)]:
        raise InputError(address, f"this dataset has no {' and no '.join(missing)}")
    return dataset


class IrDatasetsSource(ItemSource):
    """Documents with their id there; the text is `default_text`, or the given fields.

    What else a document has of strings, numbers and lists of strings is metadata.
    """

    def __init__(self, address: str, text_field: str | None) -> None:
        self._dataset = load_ir_dataset(address, "docs")
        import ir_datasets

        # The test and training queries of a collection have the same documents.
        name = ir_datasets.docs_parent_id(address.removeprefix(IR_DATASETS))
        super().__init__(SourcePlace(IR_DATASETS, name))
        self._fields = None if text_field is None else TextFields(text_field)
        kind = self._dataset.docs_cls()
        there = f"there are {', '.join(kind._fields)}"
        if self._fields is None and not hasattr(kind, "default_text"):
            raise InputError(address, f"does not say which field is the text; {there}")
        for field in self._fields.names if self._fields else ():
            if field not in kind._fields:
                raise InputError(address, f"has no field {field!r}; {there}")

    def entries(self) -> Iterator[ListedItem | UnlistedItem]:
        """Yield the documents in the collection's order."""
        for number, record in enumerate(self._dataset.docs_iter(), start=1):
            where = f"{self.place.name}:{number}"
            try:
                yield ListedItem(self._document(record), None, where)
            except InputError as error:
                yield UnlistedItem(Reject(error.item, error.rule, where), str(record.doc_id))

    def count(self) -> int:
        """Return how many documents there are, without reading them."""
        return int(self._dataset.docs_count())

    def _document(self, record: Any) -> Document:
        values = record._asdict()
        name = str(values.pop("doc_id"))
        if self._fields is None:
            text = record.default_text().strip()
        else:
            text = self._fields.text(lambda field: as_text(values[field], field, name, " "))
        if not text.strip():
            raise InputError(name, "has no text")
        of_its_own = values.pop("metadata", None)
        values |= of_its_own if isinstance(of_its_own, dict) else {}
        return Document(name, "", text, {k: v for k, v in values.items() if _tells(v, text)})


def _tells(value: object, text: str) -> bool:
    """Return whether a value can be metadata and says something that the text does not."""
    if isinstance(value, str):
        return bool(value) and value not in text
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, int | float)
