"""Batches of decoded pairs from any source, in an order that can be gone on with anywhere."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lexvla.data.order import Cursor, Order
from lexvla.data.pairs import IndexedSource, Pair, Record, ShardedSource, Skipped
from lexvla.data.skips import SkipList
from lexvla.errors import InputError
from lexvla.images import open_image

__all__ = ["Batch", "PairLoader"]

STATE_VERSION = 1

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Batch:
    """Hold what a step trains on; the lists are of one length.

    Attributes:
        ids: The pairs' ids.
        images: In mode RGB, each of its own size unless a transform changed that.
        texts: One caption of each pair.
        captions: All captions of each pair.
        labels: The classes, where there are classes.
        class_paths: The classes and those above them.
    """

    ids: list[str]
    images: list[Image.Image]
    texts: list[str]
    captions: list[tuple[str, ...]]
    labels: list[str | None]
    class_paths: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Sample:
    pair: Pair
    image: Image.Image
    text: str


class PairLoader:
    """Give batches, epoch after epoch.

    A pass over the loader gives what is left of the current epoch: `for batch in loader`. After
    any batch, `state_dict` tells the place behind it, and a new loader that loads it gives the
    batches that this one would give next. A record that cannot be read is skipped and counted,
    and the next good ones fill its batch. Processes may so have different numbers of batches:
    with several, train by steps, on `forever`.

    Threads decode, not processes: PIL lets other threads run meanwhile, and results in the order
    of the records need no more than a queue, which makes going on exact.

    Args:
        source: See `lexvla.data`.
        batch_size: Pairs in a batch.
        seed: What the order, the captions and the transform follow from, 0 or more.
        shuffle: Whether records are shuffled.
        buffer: Of shards, so many records are read and shuffled together.
        drop_last: Leave out the last batch of an epoch if it is not full.
        workers: Threads that decode; with 0, images are decoded when they are asked for.
        prefetch: So many batches are decoded ahead.
        rank: The number of this process.
        world_size: The number of processes. Shards are dealt out whole.
        require_labels: Refuse data without labels, or with one alone.
        transform: Changes each image in the threads, by a generator that follows from seed, epoch
            and id. An `InputError` that it raises skips the record.
        skipped_path: A JSONL file for what is skipped; with several processes ``-RANK`` is put
            behind its name.

    Attributes:
        epoch: The current epoch, from 0.
        skipped: What was left out until now: ``count``, and the ``first`` thousand.

    Raises:
        InputError: There are fewer records than a batch needs, fewer shards than processes, or
            labels are required and missing or all the same. While it runs: no record of an epoch
            can be read, or not enough for a batch.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        source: IndexedSource | ShardedSource,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        buffer: int = 10_000,
        drop_last: bool = False,
        workers: int = 4,
        prefetch: int = 2,
        rank: int = 0,
        world_size: int = 1,
        require_labels: bool = False,
        transform: Transform | None = None,
        skipped_path: str | Path | None = None,
    ) -> None:
        _check_numbers(batch_size=batch_size, buffer=buffer, prefetch=prefetch, of=1)
        _check_numbers(seed=seed, workers=workers, of=0)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1, not {rank} of {world_size}")
        self.source = source
        self.batch_size = batch_size
        self.epoch = 0
        self._order = Order(seed, shuffle, buffer, rank, world_size)
        self._drop_last = drop_last
        self._workers = workers
        self._prefetch = prefetch
        self._require_labels = require_labels
        self._transform = transform
        self._cursor = Cursor()
        self._batches = 0  # of this epoch
        self._labels: set[str] = set()  # of this epoch; two of them are enough to know
        path = None if skipped_path is None else Path(skipped_path)
        if path is not None and world_size > 1:
            path = path.with_name(f"{path.stem}-{rank}{path.suffix}")
        self.skipped = SkipList(path)
        if isinstance(source, ShardedSource):
            if source.shards < world_size:
                rule = f"has fewer shards ({source.shards}) than there are processes ({world_size})"
                raise InputError(source.name, rule)
        else:
            self._check_indexed(source)
            self.skipped.add(source.rejects[rank::world_size])

    def _check_indexed(self, source: IndexedSource) -> None:
        count = len(range(self._order.rank, len(source), self._order.world_size))
        if count < (self.batch_size if self._drop_last else 1):
            rule = f"has too few records for a batch of {self.batch_size} ({count} a process)"
            raise InputError(source.name, rule)
        if self._require_labels:
            classes = source.classes()
            if None in classes:
                raise InputError(source.name, "has records without a label, which is required")
            self._check_classes(classes)

    def _check_classes(self, classes: set[Any]) -> None:
        if len(classes) == 1:
            rule = f"has one class only, {next(iter(classes))!r}, and labels are required"
            raise InputError(self.source.name, rule)

    def forever(self) -> Iterator[Batch]:
        """Give batches without end, from one epoch into the next."""
        while True:
            yield from self

    def __iter__(self) -> Iterator[Batch]:
        samples: list[_Sample] = []
        skips: list[Skipped] = []
        cursor = self._cursor
        with closing(self._made()) as made:
            for sample, cursor in made:
                if isinstance(sample, InputError):
                    skips.append(Skipped(sample.item, sample.rule, self.epoch))
                    continue
                samples.append(sample)
                if len(samples) == self.batch_size:
                    yield self._give(samples, skips, cursor)
                    samples, skips = [], []
        if samples and not self._drop_last:
            yield self._give(samples, skips, cursor)
            skips = []
        self._end_epoch(skips, samples)

    def _give(self, samples: list[_Sample], skips: list[Skipped], cursor: Cursor) -> Batch:
        """Make a batch, and move the state behind it."""
        self.skipped.add(skips)
        self.skipped.write()
        self._cursor = cursor
        self._batches += 1
        pairs = [sample.pair for sample in samples]
        labels = {pair.label for pair in pairs if pair.label is not None}
        self._labels = set(sorted(self._labels | labels)[:2])
        return Batch(
            [pair.id for pair in pairs],
            [sample.image for sample in samples],
            [sample.text for sample in samples],
            [pair.texts for pair in pairs],
            [pair.label for pair in pairs],
            [pair.class_path for pair in pairs],
        )

    def _end_epoch(self, skips: list[Skipped], rest: list[_Sample]) -> None:
        self.skipped.add(skips)
        self.skipped.write()
        if not self._batches:
            rule = f"gives too few good records for a batch of {self.batch_size} ({len(rest)})"
            if not rest:
                rule = "has no record that can be read"
            if self.skipped.first:
                first = self.skipped.first[0]
                rule += f"; the first that cannot, {first.id!r}: {first.rule}"
            raise InputError(self.source.name, rule)
        # A process's own shards may well be of one class.
        if self._require_labels and self._order.world_size == 1:
            self._check_classes(self._labels)
        self.epoch += 1
        self._cursor, self._batches, self._labels = Cursor(), 0, set()

    def _made(self) -> Generator[tuple[_Sample | InputError, Cursor]]:
        """Give the rest of the epoch in order, read and decoded."""
        epoch, workers = self.epoch, self._workers
        records = self._order.records(self.source, epoch, self._cursor, ahead=workers > 0)
        if not workers:
            yield from ((self._make(record, epoch), cursor) for record, cursor in records)
            return
        waiting: deque[tuple[Future[_Sample | InputError], Cursor]] = deque()
        with closing(records), ThreadPoolExecutor(workers) as pool:
            try:
                for record, cursor in records:
                    waiting.append((pool.submit(self._make, record, epoch), cursor))
                    if len(waiting) >= self._prefetch * self.batch_size:
                        future, cursor = waiting.popleft()
                        yield future.result(), cursor
                while waiting:
                    future, cursor = waiting.popleft()
                    yield future.result(), cursor
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, record: Record, epoch: int) -> _Sample | InputError:
        try:
            pair = record()
            if self._require_labels and pair.label is None:
                raise InputError(pair.id, "has no label, which is required")
            image = open_image(pair.image, pair.id)
            if self._transform is not None:
                draw = _number(self._order.seed, pair.id, epoch)
                image = self._transform(image, np.random.default_rng(draw))
        except InputError as error:
            return error
        # Each caption once before one comes again.
        text = pair.texts[(_number(self._order.seed, pair.id) + epoch) % len(pair.texts)]
        return _Sample(pair, image, text)

    def state_dict(self) -> dict[str, Any]:
        """Return the place behind the last batch, as JSON values.

        Each process has its own.
        """
        return {
            "version": STATE_VERSION,
            "settings": self._settings(),
            "epoch": self.epoch,
            "cursor": list(self._cursor),
            "batches": self._batches,
            "labels": sorted(self._labels),
            "skipped": self.skipped.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place that `state_dict` returned.

        Raises:
            InputError: It is of other data or other settings, or of a newer version.
        """
        version, settings = state.get("version"), state.get("settings", {})
        if version != STATE_VERSION:
            rule = f"has version {version}, and this release reads {STATE_VERSION}"
            raise InputError("loader state", rule)
        changed = [key for key, now in self._settings().items() if settings.get(key) != now]
        if changed:
            raise InputError("loader state", f"was saved with another {', '.join(changed)}")
        self.epoch = state["epoch"]
        self._cursor = Cursor(*state["cursor"])
        self._batches = state["batches"]
        self._labels = set(state["labels"])
        self.skipped.load_state_dict(state["skipped"])

    def _settings(self) -> dict[str, Any]:
        settings = {"source": self.source.fingerprint, "batch_size": self.batch_size}
        return settings | {"drop_last": self._drop_last} | asdict(self._order)


def _number(seed: int, name: str, *more: int) -> int:
    text = " ".join(map(str, (seed, *more, name)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _check_numbers(of: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < of:
            raise ValueError(f"{name} must be at least {of}, not {number}")
