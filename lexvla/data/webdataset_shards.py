"""Tar files in the form of WebDataset: 000001.jpg, 000001.txt, 000001.json, 000002.jpg, ..."""

# Read with tarfile, not the webdataset library, whose shuffle cannot be resumed, which skips by
# reading the images, and which drops the rest of a shard after a bad member. tarfile gives each
# member's offset, so only headers are read until an image is wanted.

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lexvla.data.pairs import (
    Pair,
    Record,
    as_class_path,
    as_label,
    as_texts,
    bad_record,
    fingerprint_of,
    matching,
)
from lexvla.errors import InputError
from lexvla.image_formats import IMAGE_SUFFIXES

__all__ = ["WebDatasetShards", "expand_braces"]

MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # WebDataset's key and extension
_END = bytes(512)

Place = tuple[int, int]  # a member's offset and size


class WebDatasetShards:
    """Read pairs from uncompressed tar files on this machine.

    A pair's text is its ``.txt``, else a key of its ``.json``; its label is its ``.cls``, or a key
    of its ``.json``. Its id is the shard's name and the members' key.

    Args:
        shards: Paths, patterns such as ``shard-{000000..000010}.tar`` or ``*.tar``, or a folder.
        text_key: Key of the text in ``.json``.
        label_key: Key of the label in ``.json``.
        class_path_key: Key of the class path in ``.json``.

    Raises:
        InputError: A shard is missing or named twice, or there are none.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        text_key: str = "caption",
        label_key: str | None = None,
        class_path_key: str | None = None,
    ) -> None:
        patterns = [shards] if isinstance(shards, str | Path) else list(shards)
        self.name = ", ".join(map(str, patterns)) or "<shards>"
        self.paths = [path for pattern in patterns for path in _paths(str(pattern))]
        if not self.paths:
            raise InputError(self.name, "names no shards")
        if len(set(self.paths)) < len(self.paths):
            twice = next(path for path in self.paths if self.paths.count(path) > 1)
            raise InputError(str(twice), "the shard is named twice")
        unique = len({path.name for path in self.paths}) == len(self.paths)
        self._names = [path.name if unique else str(path) for path in self.paths]
        self._keys = (text_key, label_key, class_path_key)
        sizes = (str(path.stat().st_size) for path in self.paths)
        self.fingerprint = fingerprint_of([*self._names, *sizes])

    @property
    def shards(self) -> int:
        """Return how many shards there are."""
        return len(self.paths)

    def read_shard(self, number: int) -> Iterator[Record]:
        """Yield a shard's records; of a damaged one, those before the damage, then the error."""
        path, name = self.paths[number], self._names[number]
        seen: set[str] = set()
        key, parts = "", dict[str, Place]()
        damage = None
        try:
            for member in _members(path):
                match = _MEMBER.fullmatch(member.name)
                if match is None:
                    continue
                extension = match[2].lower()
                if match[1] != key or extension in parts:
                    if parts:
                        yield self._record(path, name, key, parts, seen)
                    key, parts = match[1], {}
                parts[extension] = (member.offset_data, member.size)
        except InputError as error:
            damage = InputError(name, error.rule)
        if parts:
            yield self._record(path, name, key, parts, seen)
        if damage:
            yield bad_record(damage)

    def _record(
        self, path: Path, name: str, key: str, parts: dict[str, Place], seen: set[str]
    ) -> Record:
        item = f"{name}/{key}"
        if key in seen:
            return bad_record(InputError(item, "the key occurs twice in this shard"))
        seen.add(key)
        return partial(self._read, path, item, parts)

    def _read(self, path: Path, item: str, parts: dict[str, Place]) -> Pair:
        image = next((kind[1:] for kind in IMAGE_SUFFIXES if kind[1:] in parts), None)
        if image is None:
            raise InputError(item, f"has no image; it has {', '.join(parts)}")
        text_key, label_key, class_path_key = self._keys
        try:
            with path.open("rb") as file:
                meta: dict[str | None, Any] = {}
                if "json" in parts and ("txt" not in parts or label_key or class_path_key):
                    meta = json.loads(_bytes(file, parts["json"]))
                    if not isinstance(meta, dict):
                        raise InputError(item, "the .json must be a JSON object")
                text, label = meta.get(text_key), meta.get(label_key)
                if "txt" in parts:
                    text = _bytes(file, parts["txt"]).decode("utf-8-sig")
                if "cls" in parts and label_key is None:
                    label = _bytes(file, parts["cls"]).decode()
                if text is None:
                    rule = f"has no caption: no .txt, and no {text_key!r} in a .json"
                    raise InputError(item, rule)
                data = _bytes(file, parts[image])
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(item, f"cannot be read ({error})") from error
        return Pair(
            item,
            data,
            as_texts(text, item),
            as_label(label, item),
            as_class_path(meta.get(class_path_key), item),
        )


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{000000..000010}`` and ``{a,b}`` as a shell does."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    numbers = _RANGE.fullmatch(match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= MAX_SHARDS:
            raise InputError(pattern, f"names more than {MAX_SHARDS} shards")
        step = 1 if last >= first else -1
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{n:0{width}}" for n in range(first, last + step, step)]
    else:
        choices = match[1].split(",")
    tails = expand_braces(pattern[match.end() :])
    if len(choices) * len(tails) > MAX_SHARDS:
        raise InputError(pattern, f"names more than {MAX_SHARDS} shards")
    return [pattern[: match.start()] + choice + tail for choice in choices for tail in tails]


def _paths(pattern: str) -> list[Path]:
    paths = []
    for name in expand_braces(pattern):
        path = Path(name)
        if path.is_dir():
            found = sorted(path.glob("*.tar"))
        elif path.is_file():  # before the pattern: a file's name may hold a bracket
            found = [path]
        else:
            found = matching(name)
        if not found:
            raise InputError(name, "no such shard")
        paths += found
    return paths


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar."""
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.offset_data + member.size > size:
                    raise InputError(str(path), f"the tar is truncated in {member.name}")
                if member.isreg():
                    yield member
            end = tar.offset
        # tarfile takes a bad header for the end; a whole tar ends with a block of zeros.
        with path.open("rb") as file:
            if _bytes(file, (end, len(_END))) != _END:
                raise InputError(str(path), f"the tar is truncated or damaged at byte {end}")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise InputError(
            str(path), f"the tar is damaged or is not a plain tar ({error})"
        ) from error


def _bytes(file: BinaryIO, place: Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])
