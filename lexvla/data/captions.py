"""A folder of images and a file of captions: CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from lexvla.data.pairs import Pair, PairList, as_class_path, as_label, as_texts
from lexvla.errors import InputError

__all__ = ["read_captions"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_TEXT = ("text", "caption")


def read_captions(path: str | Path) -> PairList:
    """Read a caption file without opening its images.

    Columns or keys: ``image``, a path relative to the file's folder; ``text`` or ``caption``, in
    JSON lines also a list; and optionally ``id``, ``label`` and ``class_path``, such as
    ``food/fruit``. Without an id, the image's path is the id, and lines of the same image are
    captions of one pair.

    Args:
        path: A .csv, .tsv, .jsonl or .ndjson file in UTF-8.

    Raises:
        InputError: The file or a line of it is invalid, or all images are missing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _DELIMITERS and suffix not in _JSON_SUFFIXES:
        rule = f"must end in {', '.join([*_DELIMITERS, *_JSON_SUFFIXES])}"
        raise InputError(str(path), rule)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix in _DELIMITERS:
                lines = _table(file, _DELIMITERS[suffix], str(path))
            else:
                lines = _json_lines(file, str(path))
            return PairList(str(path), _pairs(lines, path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error})") from error


def _table(file: TextIO, delimiter: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        for needed in (("image",), _TEXT):
            if not set(needed) & set(columns):
                rule = f"has no column {' or '.join(needed)}; it has {', '.join(columns) or 'none'}"
                raise InputError(name, rule)
        for row in reader:
            # csv puts fields beyond the header under None, and None for missing ones.
            if None in row:
                rule = "has more fields than the header; quote fields that contain the delimiter"
                raise InputError(name, f"line {reader.line_num}: {rule}")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(name, f"line {reader.reader.line_num}: is broken ({error})") from error


def _json_lines(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(name, f"line {number}: is not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(name, f"line {number}: must be a JSON object")
        yield number, record


def _pairs(lines: Iterable[tuple[int, dict[str, Any]]], path: Path) -> Iterable[Pair]:
    pairs: dict[str, Pair] = {}
    for number, record in lines:
        try:
            pair, named = _pair(record, path.parent)
            old = pairs.get(pair.id)
            if old and named:
                raise InputError(pair.id, "the id occurs twice")
            if old:
                pair = _merged(old, pair)
        except InputError as error:
            raise InputError(str(path), f"line {number}: {error.item!r} {error.rule}") from error
        pairs[pair.id] = pair
    return pairs.values()


def _pair(record: dict[str, Any], folder: Path) -> tuple[Pair, bool]:
    """Return a line's pair, and whether the line names its id."""
    image, name = record.get("image"), record.get("id")
    if image is None or image == "":
        raise InputError("image", "is missing")
    if not isinstance(image, str):
        raise InputError("image", "must be a path")
    named = name is not None and name != ""
    if named and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise InputError("id", "must be a string or an integer")
    item = str(name) if named else image
    texts = next((record[key] for key in _TEXT if record.get(key) is not None), None)
    pair = Pair(
        item,
        folder / image,
        as_texts(texts, item),
        as_label(record.get("label"), item),
        as_class_path(record.get("class_path"), item),
    )
    return pair, named


def _merged(old: Pair, new: Pair) -> Pair:
    if (old.image, old.label, old.class_path) != (new.image, new.label, new.class_path):
        raise InputError(
            new.id, "the same image has another id, label or class_path on an earlier line"
        )
    return replace(old, texts=old.texts + new.texts)
