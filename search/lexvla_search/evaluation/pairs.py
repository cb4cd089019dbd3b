"""Images with texts from a source, for studies of retrieval between the two."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lexvla.errors import InputError
from lexvla.images import ImageSource, open_image
from lexvla_indexer.item_source import UnlistedItem
from lexvla_indexer.report import Reject
from lexvla_indexer.sources import open_item_source

__all__ = ["Pairs", "read_pairs"]


class Pairs(NamedTuple):
    """Images, each once, with at least one text for each, and the image number of each text.

    Images are paths, or the bytes of files; rejects are items that were left out.
    """

    images: list[ImageSource]
    texts: list[str]
    image_of: list[int]
    rejects: list[Reject]


def read_pairs(source: str | Path) -> Pairs:
    """Read the items that have a text and a readable image."""
    pairs = Pairs([], [], [], [])
    numbers: dict[Path | bytes, int | str] = {}  # an image's number, or why it cannot be read
    for item in open_item_source(source).entries():
        if isinstance(item, UnlistedItem):
            pairs.rejects.append(item.reject)
            continue
        name, text, image = item.document.id, item.document.text, item.image
        if image is None or not text.strip():
            pairs.rejects.append(Reject(name, "needs an image and a text", item.where))
            continue
        if image not in numbers:
            try:
                open_image(image, name)
                numbers[image] = len(pairs.images)
                pairs.images.append(image)
            except InputError as error:
                numbers[image] = error.rule
        number = numbers[image]
        if isinstance(number, str):
            pairs.rejects.append(Reject(name, number, item.where))
        else:
            pairs.texts.append(text)
            pairs.image_of.append(number)
    return pairs
