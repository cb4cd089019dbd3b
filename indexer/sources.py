"""Where items come from: a folder of images, or a manifest of lines."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from indexer.base import Document, check_id
from lexvla.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "Item", "Reject", "read_source"]

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"},
)
MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})


@dataclass(frozen=True)
class Reject:
    """Tell why an item was left out.

    Attributes:
        item: The item's id, or what else names it.
        rule: The rule that it breaks.
        where: The file, or the manifest's path and line number.
    """

    item: str
    rule: str
    where: str


@dataclass(frozen=True)
class Item:
    """Describe one item to encode: its image if it has one, its text if not."""

    document: Document
    image: Path | None
    where: str


def read_source(
    source: str | Path,
    model: str,
    reject: Callable[[Reject], None],
    ignore: Callable[[], None],
) -> Iterator[Item]:
    """Read items one by one, without opening their images.

    A folder gives one item for each image file under it, in the order of their names: the id is
    the path under the folder, with slashes. Hidden files and folders are left out. A manifest is
    a ``.jsonl`` file of objects ``{"id", "image", "text", "metadata"}``: an id, and at least one
    of image (a path from the manifest's folder) and text.

    Args:
        source: The folder or the manifest.
        model: The name of the encoder, which is part of the items' fingerprints.
        reject: Called for each bad file or line.
        ignore: Called for each file of a folder that has no image suffix.

    Raises:
        InputError: The source is missing, or is no folder and no manifest.
    """
    path = Path(source).absolute()
    if path.is_dir():
        items = _read_folder(path, reject, ignore)
    elif not path.exists():
        raise InputError(str(source), "no such file or folder")
    elif path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise InputError(str(source), "must be a folder of images or a manifest (.jsonl)")
    else:
        items = _read_manifest(path, reject)
    return (_with_fingerprint(item, model) for item in items)


def _read_folder(
    top: Path, reject: Callable[[Reject], None], ignore: Callable[[], None]
) -> Iterator[Item]:
    def unreadable(error: OSError) -> None:
        folder = str(error.filename)
        reject(Reject(folder, f"the folder cannot be read ({error.strerror})", folder))

    for folder, folders, names in os.walk(top, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                ignore()
                continue
            try:
                document = Document(path.relative_to(top).as_posix(), uri=str(path))
            except InputError as error:
                reject(Reject(error.item, error.rule, str(path)))
            else:
                yield Item(document, path, str(path))


def _read_manifest(path: Path, reject: Callable[[Reject], None]) -> Iterator[Item]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                document, image = _parse(line, f"line {number}", path.parent)
            except InputError as error:
                reject(Reject(error.item, error.rule, where))
            else:
                yield Item(document, image, where)


def _parse(line: bytes, name: str, folder: Path) -> tuple[Document, Path | None]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(name, f"is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(name, "must be a JSON object")
    if "id" not in record:
        raise InputError(name, "has no id")
    name = check_id(record["id"])
    image = _field(record, "image", str, name)
    text = _field(record, "text", str, name)
    metadata = _field(record, "metadata", dict, name)
    if not image and not text.strip():
        raise InputError(name, "has neither an image nor a text")
    path = folder / image if image else None
    return Document(name, str(path or ""), text, metadata), path


def _field(record: dict[str, Any], key: str, kind: type[Any], name: str) -> Any:
    """Return a field, which may be absent or null."""
    value = record.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InputError(name, f"{key} must be {'a string' if kind is str else 'an object'}")
    return value


def _with_fingerprint(item: Item, model: str) -> Item:
    document = item.document
    size = modified = None
    if item.image is not None:
        try:
            status = item.image.stat()
            size, modified = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):
            pass  # opening it will tell what is wrong
    parts = [model, document.uri, document.text, dict(document.metadata), size, modified]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return replace(item, document=replace(document, fingerprint=fingerprint))
