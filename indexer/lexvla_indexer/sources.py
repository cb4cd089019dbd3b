"""Sources of items to index: a folder of images, a manifest of lines, or tar shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lexvla.data.webdataset_shards import WebDatasetShards
from lexvla.errors import InputError
from lexvla_indexer.document import Document, check_id
from lexvla_indexer.folder_source import FolderSource
from lexvla_indexer.item_source import ItemSource, Listed, Unlisted
from lexvla_indexer.report import Reject

__all__ = ["open_item_source"]

MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})
SHARD_SUFFIX = ".tar"


def open_item_source(source: str | Path, text_field: str | None = None) -> ItemSource:
    """Open a source of any kind.

    A folder gives one item for each image file under it, in the order of their names: the id is
    the path under the folder, with slashes. Hidden files and folders are left out. A manifest is
    a ``.jsonl`` file of objects ``{"id", "image", "text", "metadata"}``: an id, and at least one
    of image (a path from the manifest's folder) and text. A name or pattern that ends in ``.tar``
    means shards, as `WebDatasetShards` reads them: the images are encoded, and the captions are
    the documents' texts, a line each.

    ``text_field`` holds the text: of a manifest's lines (default ``text``), or of the ``.json``
    files in shards (default ``caption``). Of a manifest it may name several, separated by commas,
    and ``metadata.title`` the metadata value ``title``, a string or a list of strings: their texts
    are joined, a line each.

    Raises:
        InputError: The source is missing or of another kind, or a folder is given a text field, or
            shards several.
    """
    path = Path(source).absolute()
    if path.is_dir():
        if text_field is not None:
            raise InputError(str(source), "a folder of images has no text field")
        return FolderSource(path)
    if path.suffix.lower() == SHARD_SUFFIX:
        if text_field is not None and "," in text_field:
            raise InputError(str(source), "shards have one text field, so no commas")
        return _Shards(path, text_field or "caption")
    if not path.exists():
        raise InputError(str(source), "no such file or folder")
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        rule = "must be a folder of images, a manifest (.jsonl) or shards (.tar)"
        raise InputError(str(source), rule)
    return _Manifest(path, text_field or "text")


class _Manifest(ItemSource):
    def __init__(self, path: Path, text_field: str) -> None:
        super().__init__(str(path))
        self._path = path
        self._text_fields = [field.strip() for field in text_field.split(",")]

    def entries(self) -> Iterator[Listed | Unlisted]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._entry(line, f"line {number}", f"{self._path}:{number}")

    def _entry(self, line: bytes, name: str, where: str) -> Listed | Unlisted:
        known = None
        try:
            record = _record(line, name)
            known = name = check_id(record["id"])
            image = _field(record, "image", str, name)
            metadata = _field(record, "metadata", dict, name)
            texts = [_text(record, metadata, field, name) for field in self._text_fields]
            text = "\n".join(filter(None, texts))
            if not image and not text.strip():
                where_from = " or ".join(map(repr, self._text_fields))
                raise InputError(name, f"has neither an image nor a text (in {where_from})")
            path = self._path.parent / image if image else None
            return Listed(Document(name, str(path or ""), text, metadata), path, where)
        except InputError as error:
            return Unlisted(Reject(error.item, error.rule, where), known)


def _record(line: bytes, name: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(name, f"is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(name, "must be a JSON object")
    if "id" not in record:
        raise InputError(name, "has no id")
    return record


def _field(record: dict[str, Any], key: str, kind: type[Any], name: str) -> Any:
    value = record.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InputError(name, f"{key} must be {'a string' if kind is str else 'an object'}")
    return value


def _text(record: dict[str, Any], metadata: dict[str, Any], field: str, name: str) -> str:
    of_metadata = field.removeprefix("metadata.")
    if of_metadata == field:
        return str(_field(record, field, str, name))
    value = metadata.get(of_metadata)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) for each in values):
        raise InputError(name, f"{field} must be a string or a list of strings, to be a text")
    return " ".join(values)


class _Shards(ItemSource):
    def __init__(self, pattern: Path, text_key: str) -> None:
        super().__init__(str(pattern))
        self._shards = WebDatasetShards(pattern, text_key)

    def entries(self) -> Iterator[Listed | Unlisted]:
        for number, path in enumerate(self._shards.paths):
            for record in self._shards.read_shard(number):
                try:
                    pair = record()
                    metadata: dict[str, Any] = {}
                    if pair.label is not None:
                        metadata["label"] = pair.label
                    if pair.class_path:
                        metadata["class_path"] = list(pair.class_path)
                    # No uri: nothing can open a member of a tar by a path.
                    document = Document(pair.id, "", "\n".join(pair.texts), metadata)
                except InputError as error:
                    # An error about the whole shard hides what comes after it.
                    whole = error.item in (path.name, str(path)) or error.item.endswith("...")
                    reject = Reject(error.item, error.rule, str(path))
                    yield Unlisted(reject, None if whole else error.item)
                else:
                    yield Listed(document, pair.image, str(path))

    def count(self) -> int:
        # Headers only: a record's files are read when it is called.
        return sum(1 for n in range(self._shards.shards) for _ in self._shards.read_shard(n))
