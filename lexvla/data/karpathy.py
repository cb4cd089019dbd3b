"""COCO and Flickr30k as Karpathy split them: one JSON file and folders of images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lexvla.data.pairs import Pair, PairList, as_texts
from lexvla.errors import InputError

__all__ = ["read_karpathy"]


def read_karpathy(
    path: str | Path,
    images: str | Path | None = None,
    split: str = "train",
    captions: int = 5,
) -> PairList:
    """Read one split of ``dataset_coco.json`` or ``dataset_flickr30k.json``.

    The file is ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}``, where
    ``filepath`` is optional. The id of a pair is the image's file name.

    Args:
        path: The JSON file.
        images: Folder of the images, or of the folders that ``filepath`` names; by default that
            of the file.
        split: A split, or several joined by ``+``, such as ``train+restval``.
        captions: Captions to use of each image, the first ones. Papers use five.

    Raises:
        InputError: The file or a record of it is invalid, the split does not exist, or all images
            are missing.
    """
    if captions < 1:
        raise ValueError(f"captions must be at least 1, not {captions}")
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not readable JSON ({error})") from error
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise InputError(str(path), "must be a JSON object with a list of images")
    if not records:
        raise InputError(str(path), "has no records")
    wanted = split.split("+")
    folder = path.parent if images is None else Path(images)
    return PairList(str(path), _pairs(records, wanted, folder, captions, str(path)))


def _pairs(
    records: list[Any], wanted: list[str], folder: Path, captions: int, name: str
) -> Iterator[Pair]:
    there = {str(record.get("split")) for record in records if isinstance(record, dict)}
    for split in wanted:
        if split not in there:
            known = ", ".join(sorted(there))
            raise InputError(name, f"has no split {split!r}; there are {known}")
    seen: set[str] = set()
    for number, record in enumerate(records):
        try:
            if not isinstance(record, dict):
                raise InputError("the record", "must be a JSON object")
            if record.get("split") not in wanted:
                continue
            pair = _pair(record, folder, captions)
            if pair.id in seen:
                raise InputError(pair.id, "occurs twice")
        except InputError as error:
            raise InputError(name, f"images[{number}]: {error.item!r} {error.rule}") from error
        seen.add(pair.id)
        yield pair


def _pair(record: dict[str, Any], folder: Path, captions: int) -> Pair:
    file, above = record.get("filename"), record.get("filepath") or ""
    if not isinstance(file, str) or not file or not isinstance(above, str):
        raise InputError("filename", "must be a string, and filepath too if there is one")
    sentences = record.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(each, dict) for each in sentences):
        raise InputError(file, "sentences must be a list of JSON objects")
    texts = as_texts([each.get("raw") for each in sentences[:captions]], file)
    return Pair(file, folder / above / file, texts)
