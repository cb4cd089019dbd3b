"""From a source into an index: parallel decoding, batches, resuming, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError, VocabularyMismatchError
from lexvla_indexer.base import Index, check_match
from lexvla_indexer.document import Document
from lexvla_indexer.entering import enter
from lexvla_indexer.fingerprint import content_of, source_of
from lexvla_indexer.isolating import isolate
from lexvla_indexer.item_source import ItemSource, ListedItem, UnlistedItem
from lexvla_indexer.loading import Loaded, in_order, in_shard, load
from lexvla_indexer.pruning import doubt
from lexvla_indexer.reading import Reading
from lexvla_indexer.report import Loss, Reject, RejectLog, Report
from lexvla_indexer.sources import open_item_source

__all__ = ["IndexSink", "Ingest", "Sink", "index_source", "take_writer_lock"]

_REJECTS = "rejected.jsonl"
# A killed run loses at most what came since the last commit. Each commit makes a segment, and
# searches take longer over many.
_COMMIT_SECONDS = 60.0
_COMMIT_ITEMS = 8192
_MAX_PIXELS_HELD = 32_000_000  # of a batch; decoded images take 4 bytes a pixel
_CHUNK = 1024  # ids to look up at once


def index_source(
    source: str | Path | ItemSource,
    index: Index,
    encoder: Encoder,
    batch_size: int = 64,
    resume: bool = True,
    show_progress_bar: bool | None = None,
    *,
    text_field: str | None = None,
    prune: bool = False,
    prune_anyway: bool = False,
    stop: Event | None = None,
    wanted: Callable[[ListedItem, bool], bool] | None = None,
    reading: Reading | None = None,
) -> Report:
    """Encode the items of a source and store them; `open_item_source` lists the kinds of source.

    An item with an image is encoded by its image, one without by its text. Bad items are left
    out, reported, and written to ``rejected.jsonl`` in the index directory, one JSON object a
    line; during the run, to ``rejected.jsonl.part``. Work is committed about once a minute, so
    that a killed run can be started again and continues.

    One folder is one source, however its path is spelt; the index keeps where it lies (see
    `Roots`), and documents' uris are paths from there. A folder inside an indexed one is a part of
    it, and only that part is read and pruned. A file of a folder that was moved or renamed within
    it keeps its vectors: the document gets its new id.

    A document belongs to the source that last listed it. Pruning deletes the documents that this
    source no longer lists. It is refused, and the report says why, if the listing may be
    incomplete (a folder that cannot be read, a line without an id, a damaged shard), and unless
    ``prune_anyway`` is set, if more than a tenth of the source's documents and at least 10 would
    go, or a folder that had documents has no files, as if its disk was not mounted.

    Memory: the decoded images of two batches and two for each thread; what is staged since the
    last commit; the ids (about 100 bytes each).

    Args:
        source: What `open_item_source` opens, or has opened.
        index: The index to fill; it becomes this process's to write.
        encoder: Makes the vectors. It is called in another thread, one call at a time.
        batch_size: The most items to encode at once.
        resume: Skip items that the index has from the same encoder, unchanged in the bytes of the
            image, address, text and metadata.
        show_progress_bar: Show progress on stderr; by default if that is a terminal.
        text_field: See `open_item_source`.
        prune: Delete what is gone from the source.
        prune_anyway: Delete it however much is gone.
        stop: Set it, from another thread or a signal handler, to stop: what is encoded by then
            is committed.
        wanted: Whether to read an item, given the item and whether the index has its id. Other
            items stay as they are, and are not counted.
        reading: How to read the files.

    Raises:
        IndexLockedError: Another writer has the index.
        InputError: The source is missing, or of an unknown kind.
        VocabularyMismatchError: The index was made with another vocabulary or by another model.
    """
    if not len(index.vocabulary):
        raise VocabularyMismatchError("the index was made without a vocabulary, and is empty")
    check_match(encoder, index)
    reading = reading or Reading()
    opened = open_item_source(source, text_field, reading)
    report = Report()
    sink = IndexSink(index, report, resume)
    take_writer_lock(index)
    entered = enter(index, opened.place, encoder.name)
    opened.enter(entered)
    report.absorbed, report.moved_from = list(entered.absorbed), entered.moved_from
    ingest = Ingest(
        opened,
        encoder,
        sink,
        report,
        batch_size,
        show_progress_bar,
        stop=stop or Event(),
        wanted=wanted,
        reading=reading,
    )
    if opened.has_paths and resume:
        ingest.missing = sink.missing(opened)
    with RejectLog(sink.path(_REJECTS), report) as rejects:
        ingest.run(rejects)
        if (prune or prune_anyway) and not report.interrupted:
            if ingest.gap:
                report.prune_refused = f"the listing is incomplete: {ingest.gap}"
            else:
                sink.prune(opened, ingest.seen, prune_anyway)
    return report


def take_writer_lock(index: Index) -> None:
    """Become the index's writer before writing anything beside it, or raise IndexLockedError."""
    index.delete([])


class Sink(Protocol):
    """Take what an ingest makes."""

    def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprints of those ids that need no encoding if they are unchanged."""

    def keep(self, document: Document, known: str) -> None:
        """Take an unchanged document and the fingerprint that it had before."""

    def store(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Take documents with their vectors."""

    def reuse(self, document: Document, twin: str) -> None:
        """Take a document whose vectors are there already, under the id ``twin``."""

    def finish(self) -> None:
        """Make everything that was taken durable."""


class IndexSink:
    """Stage documents in an index, and commit from time to time.

    ``report`` counts them; ``resume`` says whether documents that are there may stay.
    """

    def __init__(self, index: Index, report: Report, resume: bool) -> None:
        self._index = index
        self._report = report
        self._resume = resume
        self._reused: list[tuple[Document, str]] = []
        self._staged = 0
        self._committed = time.monotonic()

    def path(self, name: str) -> Path | None:
        """Return the path of a file beside the index, if the index has a directory."""
        return None if self._index.directory is None else self._index.directory / name

    def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprints of those ids that the index has."""
        return self._index.fingerprints(ids) if self._resume else {}

    def missing(self, source: ItemSource) -> dict[str, list[str]]:
        """Return the documents that a source no longer lists, by the hash of their content.

        Nothing if the listing may be incomplete, so that they may still be there.
        """
        before = self._own(source)
        if not before:
            return {}
        listed = set()
        for entry in source.entries():
            name = entry.document.id if isinstance(entry, ListedItem) else entry.id
            if name is None:
                return {}
            listed.add(name)
        found: dict[str, list[str]] = {}
        gone = [name for name in before if name not in listed]
        # Asked for again, as a document may have lost its vectors.
        for name, known in self._index.fingerprints(gone).items():
            found.setdefault(content_of(known), []).append(name)
        return found

    def keep(self, document: Document, known: str) -> None:
        """Leave a document as it is, or hand it to the source that lists it now."""
        self._report.skipped += 1
        if document.fingerprint != known:
            self._reuse(document, document.id)

    def reuse(self, document: Document, twin: str) -> None:
        """Store a document with the vectors of one that is there: of itself, or another id's.

        Another id is deleted: the document has moved.
        """
        if twin == document.id:
            self._report.updated += 1
        else:
            self._report.moved += 1
        self._reuse(document, twin)

    def store(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage documents, and commit if it is time."""
        self._stage(documents, encoding)
        self._report.added += len(documents)
        self._report.empty += int((np.diff(encoding.lexical.indptr) == 0).sum())

    def finish(self) -> None:
        """Commit what is left."""
        self._stage_reused()
        self._commit()

    def prune(self, source: ItemSource, listed: set[str], anyway: bool) -> None:
        """Delete the documents of a source that are not among those listed, and commit.

        ``anyway`` says that it does not matter how many these are.
        """
        own = self._own(source)
        gone = [name for name in own if name not in listed]
        if not anyway:
            root = source.place.root if source.has_paths else None
            self._report.prune_refused = doubt(
                root,
                [name.removeprefix(source.start) for name in gone],
                [name.removeprefix(source.start) for name in own if name in listed],
            )
            if not listed and not self._report.prune_refused:
                self._report.prune_refused = "the source lists no items"
            if self._report.prune_refused:
                return
        for start in range(0, len(gone), _CHUNK):
            self._report.pruned += self._index.delete(gone[start : start + _CHUNK])
        self._index.commit()

    def _own(self, source: ItemSource) -> dict[str, str]:
        """Return the fingerprints of a source's documents by id."""
        own = self._index.fingerprinted(f"{source.key}:")
        return {name: known for name, known in own if name.startswith(source.start)}

    def _reuse(self, document: Document, twin: str) -> None:
        self._reused.append((document, twin))
        if len(self._reused) == _CHUNK:
            self._stage_reused()

    def _stage_reused(self) -> None:
        if self._reused:
            documents = [document for document, _ in self._reused]
            twins = [twin for _, twin in self._reused]
            rows = self._index.vectors(twins)
            # Before they are added, so that a commit has both or neither.
            self._index.delete([t for d, t in self._reused if t != d.id])
            self._stage(documents, rows)
        self._reused = []

    def _stage(self, documents: Sequence[Document], encoding: Encoding) -> None:
        self._report.replaced += self._of_another_source(documents)
        self._index.add(documents, encoding)
        self._staged += len(documents)
        due = time.monotonic() - self._committed >= _COMMIT_SECONDS
        if due or self._staged >= _COMMIT_ITEMS:
            self._commit()

    def _of_another_source(self, documents: Sequence[Document]) -> int:
        """Count the ids under which the index has another document, of another source."""
        held = self._index.fingerprints([document.id for document in documents])
        count = 0
        for document in documents:
            old, new = held.get(document.id, ""), document.fingerprint
            same_source = source_of(old) in ("", source_of(new))
            count += not same_source and old.partition(":")[2] != new.partition(":")[2]
        return count

    def _commit(self) -> None:
        self._index.commit()
        self._staged, self._committed = 0, time.monotonic()


class _Batch:
    """Items to encode together, and the pixels of their images."""

    def __init__(self) -> None:
        self.items: list[Loaded] = []
        self.pixels = 0

    def add(self, loaded: Loaded) -> None:
        self.items.append(loaded)
        if loaded.image is not None:
            self.pixels += loaded.image.width * loaded.image.height

    def take(self) -> list[Loaded]:
        """Return the items, and hold none of them any more."""
        taken, self.items, self.pixels = self.items, [], 0
        return taken


class _Encoded(NamedTuple):
    documents: list[Document]
    encoding: Encoding | None
    rejects: list[Reject]
    cut: int


@dataclass
class Ingest:
    """Take a source through decoding and the model into a sink.

    Threads read and decode, one more runs the model, and the caller's thread lists the source and
    feeds the sink. While the model works on a batch, the next is decoded and the last is stored.

    Attributes:
        seen: The ids that the source lists, including those of bad items.
        missing: Ids that the source no longer lists, by the hash of their content.
        wanted: See `index_source`.
        stop: Ends the run before the next item when it is set.
        gap: Why the listing may be incomplete; empty if it is complete.
    """

    source: ItemSource
    encoder: Encoder
    sink: Sink
    report: Report
    batch_size: int = 64
    show_progress_bar: bool | None = None
    shard: tuple[int, int] = (1, 1)
    stop: Event = field(default_factory=Event)
    wanted: Callable[[ListedItem, bool], bool] | None = None
    reading: Reading = field(default_factory=Reading)
    missing: dict[str, list[str]] = field(default_factory=dict, init=False)
    seen: set[str] = field(default_factory=set, init=False)
    gap: str = field(default="", init=False)
    _running: Future[_Encoded] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    def run(self, rejects: RejectLog) -> None:
        """Process the source; ``rejects`` receives what is left out."""
        self._rejects = rejects
        images, texts = _Batch(), _Batch()
        disable = None if self.show_progress_bar is None else not self.show_progress_bar
        with (
            tqdm(unit=" items", disable=disable) as self._bar,
            ThreadPoolExecutor(1) as self._model,
            closing(in_order(self._load, self._jobs())) as items,
        ):
            if not self._bar.disable:
                self._bar.total = self.source.count()
                self._bar.refresh()
            for loaded in items:
                if self.stop.is_set():
                    break
                if loaded.error is not None:
                    self._reject(Reject(loaded.error.item, loaded.error.rule, loaded.where))
                elif loaded.known is not None:
                    self.sink.keep(loaded.document, loaded.known)
                    self._bar.update()
                elif loaded.twin is not None:
                    self.sink.reuse(loaded.document, loaded.twin)
                    self._bar.update()
                else:
                    self.report.losses += [Loss(loaded.document.id, lost) for lost in loaded.lost]
                    batch = texts if loaded.image is None else images
                    batch.add(loaded)
                    if len(batch.items) == self.batch_size or batch.pixels > _MAX_PIXELS_HELD:
                        self._encode(batch)
            for batch in (images, texts):
                if batch.items and not self.stop.is_set():
                    self._encode(batch)
            if self._running is not None:
                self._store(self._running.result())
            self.sink.finish()
            if self.stop.is_set():
                of = "" if self._bar.total is None else f" of {self._bar.total:,}"
                done = self.report.stored + len(self.report.rejected)
                self.report.interrupted = f"{done:,}{of} items"
        self.report.ignored = dict(self.source.ignored)
        self.report.excluded = dict(self.source.excluded)

    def _jobs(self) -> Iterator[tuple[ListedItem, str | None]]:
        items = self._items()
        while chunk := list(islice(items, self.batch_size)):
            known = self.sink.known([item.document.id for item in chunk])
            for item in chunk:
                before = known.get(item.document.id)
                if self.wanted is None or self.wanted(item, before is not None):
                    yield item, before
                else:
                    self._bar.update()

    def _items(self) -> Iterator[ListedItem]:
        """Give the items of this shard whose id is new; reject the others."""
        for entry in self.source.entries():
            if isinstance(entry, UnlistedItem):
                self._reject(entry.reject)
                if entry.id is not None:
                    self.seen.add(entry.id)
                elif not self.gap:
                    self.gap = f"{entry.reject.item!r}: {entry.reject.rule}"
                continue
            name = entry.document.id
            if name in self.seen:
                self._reject(Reject(name, "an earlier item has the same id", entry.where))
                continue
            self.seen.add(name)
            if in_shard(name, self.shard):
                yield entry
            else:
                self._bar.update()

    def _load(self, job: tuple[ListedItem, str | None]) -> Loaded:
        item, known = job
        source, encoder = self.source.key, self.encoder.name
        return load(item, known, source, encoder, self.missing, self.reading)

    def _reject(self, reject: Reject) -> None:
        self._rejects.add(reject)
        self._bar.update()

    def _encode(self, batch: _Batch) -> None:
        """Hand a batch to the model, and store the previous one while the model works."""
        taken = batch.take()  # its images live no longer than the model needs them
        done = None if self._running is None else self._running.result()
        self._running = self._model.submit(_run, self.encoder, taken)
        if done is not None:
            self._store(done)

    def _store(self, done: _Encoded) -> None:
        documents, encoding, rejects, cut = done
        self.report.cut += cut
        if encoding is not None:

            def store(rows: Sequence[int]) -> None:
                self.sink.store([documents[row] for row in rows], encoding[list(rows)])

            # An engine may have limits of its own.
            for rows, made in isolate(store, range(len(documents))):
                if isinstance(made, InputError):
                    rejects += [Reject(made.item, made.rule, documents[row].uri) for row in rows]
                else:
                    self._bar.update(len(rows))
        for reject in rejects:
            self._reject(reject)


def _run(encoder: Encoder, batch: list[Loaded]) -> _Encoded:
    """Encode a batch; if the model refuses an item, find out which."""

    def encode(some: Sequence[Loaded]) -> Encoding:
        images: list[Any] = [each.image for each in some if each.image is not None]
        texts = [each.document.text for each in some]
        return encoder.encode_image(images) if images else encoder.encode_text(texts)

    documents, parts, rejects = [], [], []
    for group, made in isolate(encode, batch):
        if isinstance(made, InputError):
            rejects += [Reject(each.document.id, made.rule, each.where) for each in group]
        else:
            documents += [each.document for each in group]
            parts.append(made)
    texts = [document.text for document in documents] if batch[0].image is None else []
    cut = sum(map(bool, encoder.unread(texts))) if texts and hasattr(encoder, "unread") else 0
    return _Encoded(documents, Encoding.concat(parts) if parts else None, rejects, cut)
