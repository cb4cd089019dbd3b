"""Read, fingerprint and decode items in threads, in order and within bounds."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lexvla.errors import InputError
from lexvla_indexer.document import Document
from lexvla_indexer.fingerprint import content_of, hash_of, hash_of_content
from lexvla_indexer.item_source import ListedItem
from lexvla_indexer.reading import Reading

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LOADED_AHEAD", "THREADS", "Loaded", "in_order", "in_shard", "load"]

THREADS = min(8, os.cpu_count() or 1)
LOADED_AHEAD = 2 * THREADS  # items that are being loaded or wait to be taken
_MAX_FILE_BYTES = 1 << 29  # more than the largest decodable image takes uncompressed

Job = TypeVar("Job")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Loaded:
    """An item that is ready for the model, or the reason why it is not.

    Attributes:
        document: With its fingerprint, unless its image cannot be read.
        where: See `Reject`.
        image: The decoded image, if there is one and it is needed.
        known: The fingerprint that the index has, if the content is unchanged.
        twin: The id under which the index has the same vectors already.
        lost: What was lost of the image.
        error: What is wrong with the item.
    """

    document: Document
    where: str
    image: Image.Image | None = None
    known: str | None = None
    twin: str | None = None
    lost: tuple[str, ...] = ()
    error: InputError | None = None


def load(
    item: ListedItem,
    known: str | None,
    source: str,
    model: str,
    missing: Mapping[str, list[str]],
    reading: Reading,
) -> Loaded:
    """Read an item's image, and decode it if the content is new. The file is read once.

    A fingerprint is the source's key, a hash of what the vectors depend on (the encoder's name
    and the bytes of the image, or the text without one), and a hash of what is stored besides
    (address, text, metadata, and whether the file's own are read). ``known`` is the one that the
    index has of this id, if any. ``missing`` has ids that the source no longer lists, by the hash
    of their content; a twin is taken out of it.
    """
    from lexvla.images import ENOUGH_SIDE, open_image

    document = item.document
    lost: list[str] = []
    try:
        data = _read(item.image, document.id) if isinstance(item.image, Path) else item.image
        if item.fetch is not None:
            data = item.fetch()
        content = hash_of_content(model, document.text, data)
        of_file = data is not None and reading.exif
        stored = hash_of([document.uri, document.text, dict(document.metadata), of_file])
        document = replace(document, fingerprint=f"{source}:{content}:{stored}")
        if known == document.fingerprint:
            return Loaded(document, item.where, known=known)
        if data is not None and reading.exif:
            document = _described(document, data)
        if known is not None and content_of(known) == content:
            if known.rpartition(":")[2] == stored:
                return Loaded(document, item.where, known=known)
            return Loaded(document, item.where, twin=document.id)
        with suppress(IndexError, KeyError):
            return Loaded(document, item.where, twin=missing[content].pop())
        if data is None:
            return Loaded(document, item.where)
        image = open_image(
            data, document.id, reading.max_pixels, least_side=ENOUGH_SIDE, warn=lost.append
        )
        return Loaded(document, item.where, image, lost=tuple(lost))
    except InputError as error:
        return Loaded(document, item.where, error=error)


def _described(document: Document, data: bytes) -> Document:
    """Return a document with what its image's file says; what it had before stays."""
    from lexvla.photo_metadata import read_photo_metadata

    said = read_photo_metadata(data)
    texts = dict.fromkeys(filter(None, (document.text, said.text)))
    metadata = {**said.fields, **document.metadata}
    return replace(document, text="\n".join(texts), metadata=metadata)


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Return whether an id belongs to shard i of n, counted from 1, by its hash alone."""
    number, of = shard
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % of == number - 1


def in_order(work: Callable[[Job], Made], jobs: Iterable[Job]) -> Generator[Made, None, None]:
    """Run jobs in threads, at most `LOADED_AHEAD` ahead, and yield results in the jobs' order."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) == LOADED_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(path: Path, name: str) -> bytes:
    from lexvla.images import open_image

    try:
        if path.is_file():  # opening a pipe would block forever
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise InputError(name, f"the file is larger than {_MAX_FILE_BYTES:,} bytes")
            return path.read_bytes()
    except (OSError, ValueError):
        pass
    open_image(path, name)  # says why the path is not an image
    raise InputError(name, "the file changed while it was read")
