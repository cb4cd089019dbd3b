"""Resumable batches of decoded pairs from any source."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lexvla.data.order import Cursor, Order
from lexvla.data.pairs import IndexedSource, Pair, Record, ShardedSource, Skipped
from lexvla.errors import InputError
from lexvla.images import open_image

__all__ = ["Batch", "PairLoader"]

STATE_VERSION = 1
MAX_LISTED = 1000

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Batch:
    """The pairs of a training step, as lists of one length.

    Attributes:
        ids: Ids of the pairs.
        images: RGB images, of different sizes unless a transform resized them.
        texts: One caption of each pair.
        captions: All captions of each pair.
        labels: Classes, if there are classes.
        class_paths: Classes with their ancestors.
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
    """Yield batches, epoch after epoch.

    Iterating yields the rest of the current epoch. `state_dict` returns the position after the
    last batch; a new loader that loads it continues with the same batches. Unreadable records are
    skipped and counted, and the next good ones fill the batch, so processes may have different
    numbers of batches: with several, train by steps, on `forever`.

    Decoding uses threads, not processes: PIL releases the GIL, and a queue keeps the order of the
    records, which makes resuming exact.

    Args:
        source: A source of `lexvla.data`.
        batch_size: Pairs in a batch.
        seed: Seed of the order, the captions and the transform, at least 0.
        shuffle: Whether to shuffle records.
        buffer: Records of a sharded source that are shuffled together.
        drop_last: Drop an epoch's last batch if it is not full.
        workers: Decoding threads; 0 decodes on demand.
        prefetch: Batches to decode ahead.
        rank: Number of this process.
        world_size: Number of processes. Shards are not split between processes.
        require_labels: Refuse data without labels or with a single one.
        transform: Changes each image, in the threads, with a generator seeded by seed, epoch and
            id. If it raises `InputError`, the record is skipped.
        skipped_path: A JSONL file of the skipped records; with several processes, ``-RANK`` is
            appended to its name.

    Attributes:
        epoch: The current epoch, from 0.
        skipped: The records left out so far: ``count``, and the ``first`` thousand.

    Raises:
        InputError: There are too few records or shards, or labels are required and missing. While
            iterating: an epoch has no readable record, or too few for a batch.
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
        self._labels: set[str] = set()  # of this epoch, at most two
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
        """Yield batches without end."""
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
        """Make a batch, and move the state past it."""
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
        """Yield the rest of the epoch in order, read and decoded."""
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
        # Every caption is used once before any is repeated.
        text = pair.texts[(_number(self._order.seed, pair.id) + epoch) % len(pair.texts)]
        return _Sample(pair, image, text)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch of this process, as JSON values."""
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
        """Continue from a state of `state_dict`.

        Raises:
            InputError: It is of other data or settings, or of a newer version.
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


class SkipList:
    """Count skipped records.

    Args:
        path: A JSONL file for all of them. A new run overwrites it, a resumed one appends.

    Attributes:
        count: How many there were.
        first: The first thousand.
        path: The file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.count = 0
        self.first: list[Skipped] = []
        self.path = path
        self._waiting: list[Skipped] = []

    def add(self, skips: Iterable[Skipped]) -> None:
        """Count some records; `write` puts them into the file."""
        for skip in skips:
            self.count += 1
            if len(self.first) < MAX_LISTED:
                self.first.append(skip)
            if self.path is not None:
                self._waiting.append(skip)

    def write(self) -> None:
        """Append what the file lacks."""
        if self.path is None or not self._waiting:
            return
        new = len(self._waiting) == self.count
        with self.path.open("w" if new else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(skip._asdict()) + "\n" for skip in self._waiting)
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the list."""
        return {"count": self.count, "first": [list(skip) for skip in self.first]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state; lines written after it are cut off."""
        self.count = state["count"]
        self.first = [Skipped(*skip) for skip in state["first"]]
        self._waiting = []
        if self.path is not None and self.path.exists():
            with self.path.open("rb") as file:
                end = sum(len(line) for line, _ in zip(file, range(self.count), strict=False))
            os.truncate(self.path, end)


def _number(seed: int, name: str, *more: int) -> int:
    text = " ".join(map(str, (seed, *more, name)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _check_numbers(of: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < of:
            raise ValueError(f"{name} must be at least {of}, not {number}")
