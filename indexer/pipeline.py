"""From a folder or manifest into an index: batches, resume, rejects, progress."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from tqdm import tqdm

from indexer.base import Document, Index, check_match
from indexer.sources import Item, Reject, read_source
from lexvla.encoding import Encoder, Encoding
from lexvla.errors import InputError, VocabularyMismatchError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Reject", "Report", "index_source"]

_REJECTS = "rejected.jsonl"
# A killed run loses at most what came since the last commit. Each commit makes a segment, and
# searches take longer over many.
_COMMIT_SECONDS = 60.0
_COMMIT_ITEMS = 8192
_MAX_PIXELS_HELD = 200_000_000  # decoded images take 3 bytes a pixel


@dataclass
class Report:
    """Count what became of the items of a source.

    Attributes:
        added: Items encoded and stored, new ones and changed ones.
        skipped: Items that the index already had, unchanged.
        empty: Items among the added whose lexical vector has no word; no words find them.
        ignored: Files of the folder that have no image suffix.
        rejected: Items left out, each with the rule that it breaks.
        rejects_path: The file that lists them; ``None`` if the index has no directory.
    """

    added: int = 0
    skipped: int = 0
    empty: int = 0
    ignored: int = 0
    rejected: list[Reject] = field(default_factory=list)
    rejects_path: Path | None = None


def index_source(
    source: str | Path,
    index: Index,
    encoder: Encoder,
    batch_size: int = 64,
    resume: bool = True,
    show_progress_bar: bool | None = None,
) -> Report:
    """Encode the items of a folder or manifest and store them; see `read_source` for both.

    An item with an image is encoded by its image, one without by its text. Bad items are left
    out, reported, and written to ``rejected.jsonl`` in the index directory, one JSON object a
    line; while the run lasts, to ``rejected.jsonl.part``. Work is committed about once a minute,
    so that a run that was killed can be run again and goes on. Items that are gone from the
    source stay in the index.

    Memory: one batch, what is staged since the last commit, and the ids (about 100 bytes each).

    Args:
        source: A folder of images, or a ``.jsonl`` manifest.
        index: The index to fill; it becomes this process's to write.
        encoder: Makes the vectors.
        batch_size: The most items to encode at once.
        resume: Skip items that the index has from the same encoder and that are unchanged: by
            size and modification time of the image, address, text and metadata.
        show_progress_bar: Show progress on stderr; by default if that is a terminal.

    Raises:
        IndexLockedError: Another writer has the index.
        InputError: The source is missing, or is no folder and no manifest.
        ValueError: The batch size is below 1.
        VocabularyMismatchError: The index was made with another vocabulary or by another model.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if not len(index.vocabulary):
        raise VocabularyMismatchError("the index was made without a vocabulary, and is empty")
    check_match(encoder, index)
    index.delete([])  # takes the writer's lock, before anything is written beside the index
    report = Report()
    with _RejectLog(index.directory, report) as rejects:
        ingest = _Ingest(index, encoder, batch_size, report, rejects)
        items = read_source(source, encoder.name, rejects.add, rejects.ignore)
        disable = None if show_progress_bar is None else not show_progress_bar
        with tqdm(unit=" items", disable=disable) as bar:
            for batch in _batches(rejects.without_repeats(items), batch_size):
                known = index.fingerprints([item.document.id for item in batch]) if resume else {}
                for item in batch:
                    if known.get(item.document.id) == item.document.fingerprint:
                        report.skipped += 1
                    else:
                        ingest.take(item)
                bar.update(len(batch))
            ingest.finish()
    return report


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _RejectLog:
    """Keep rejects in the report, and in a file that a crash leaves readable."""

    def __init__(self, directory: Path | None, report: Report) -> None:
        self._report = report
        self._path = None if directory is None else directory / _REJECTS
        report.rejects_path = self._path
        self._file: TextIO | None = None

    def __enter__(self) -> _RejectLog:
        if self._path is not None:
            self._file = self._path.with_name(f"{_REJECTS}.part").open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._file is None or self._path is None:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            Path(self._file.name).replace(self._path)

    def add(self, reject: Reject) -> None:
        """Note a reject."""
        self._report.rejected.append(reject)
        if self._file is not None:
            self._file.write(json.dumps(asdict(reject)) + "\n")
            self._file.flush()

    def ignore(self) -> None:
        """Note a file that is no image by its name."""
        self._report.ignored += 1

    def without_repeats(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass on items whose id is new; reject the others."""
        seen = set()
        for item in items:
            name = item.document.id
            if name in seen:
                self.add(Reject(name, "an earlier item has the same id", item.where))
            else:
                seen.add(name)
                yield item


class _Ingest:
    """Encode items in batches and stage them, and commit from time to time."""

    def __init__(
        self, index: Index, encoder: Encoder, batch_size: int, report: Report, rejects: _RejectLog
    ) -> None:
        self._index = index
        self._encoder = encoder
        self._batch_size = batch_size
        self._report = report
        self._rejects = rejects
        self._texts: list[Document] = []
        self._images: list[Document] = []
        self._pixels: list[Image.Image] = []
        self._staged = 0
        self._committed = time.monotonic()

    def take(self, item: Item) -> None:
        """Take an item in, unless its image is bad."""
        from lexvla.images import open_image

        if item.image is None:
            self._texts.append(item.document)
        else:
            try:
                self._pixels.append(open_image(item.image, item.document.id))
            except InputError as error:
                self._rejects.add(Reject(error.item, error.rule, item.where))
                return
            self._images.append(item.document)
        held = sum(image.width * image.height for image in self._pixels)
        if len(self._images) == self._batch_size or held > _MAX_PIXELS_HELD:
            self._encode_images()
        if len(self._texts) == self._batch_size:
            self._encode_texts()

    def finish(self) -> None:
        """Store what is left, and commit."""
        self._encode_images()
        self._encode_texts()
        self._index.commit()

    def _encode_images(self) -> None:
        if self._images:
            self._store(self._images, self._encoder.encode_image(self._pixels))
        self._images, self._pixels = [], []

    def _encode_texts(self) -> None:
        if self._texts:
            texts = [document.text for document in self._texts]
            self._store(self._texts, self._encoder.encode_text(texts))
        self._texts = []

    def _store(self, documents: list[Document], encoding: Encoding) -> None:
        self._index.add(documents, encoding)
        self._report.added += len(documents)
        self._report.empty += int((np.diff(encoding.lexical.indptr) == 0).sum())
        self._staged += len(documents)
        due = time.monotonic() - self._committed >= _COMMIT_SECONDS
        if due or self._staged >= _COMMIT_ITEMS:
            self._index.commit()
            self._staged, self._committed = 0, time.monotonic()
