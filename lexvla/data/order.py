"""The order in which an epoch's records come, and places in it to go on from."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from lexvla.data.pairs import IndexedSource, Record, ShardedSource

__all__ = ["Cursor", "Order", "read_ahead"]

Item = TypeVar("Item")


class Cursor(NamedTuple):
    """Name a place in an epoch: how many records of which block are taken.

    A block begins at a record of a shard, both counted in the order of the epoch. For a source
    without shards the epoch is one block.
    """

    shard: int = 0
    record: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Order:
    """Say what the order follows from; with it and an epoch, a `Cursor` is enough to go on.

    Attributes:
        seed: Another seed gives another order.
        shuffle: Whether records are shuffled at all.
        buffer: Of shards, so many records are read and shuffled together.
        rank: The number of this process.
        world_size: The number of processes; each gets its own records.
    """

    seed: int
    shuffle: bool
    buffer: int
    rank: int
    world_size: int

    def records(
        self, source: IndexedSource | ShardedSource, epoch: int, start: Cursor, ahead: bool
    ) -> Generator[tuple[Record, Cursor]]:
        """Give records, each with the place behind it.

        Args:
            source: Where they come from.
            epoch: The number of the epoch.
            start: The place to go on from.
            ahead: Whether a thread reads the next block of a shard meanwhile.
        """
        if not isinstance(source, ShardedSource):
            mine = self._permutation(len(source), epoch)[self.rank :: self.world_size]
            for taken in range(start.taken, len(mine)):
                record = partial(source.__getitem__, int(mine[taken]))
                yield record, Cursor(taken=taken + 1)
            return
        blocks = self._blocks(source, epoch, start)
        for place, block in read_ahead(blocks) if ahead else blocks:
            order = self._permutation(len(block), epoch, self.rank, place.shard, place.record)
            for taken in range(start.taken, len(block)):
                yield block[order[taken]], place._replace(taken=taken + 1)
            start = Cursor()  # its count is of the first block alone

    def _blocks(
        self, source: ShardedSource, epoch: int, start: Cursor
    ) -> Iterator[tuple[Cursor, Sequence[Record]]]:
        """Cut the stream of shards into blocks of records, each with its beginning.

        A buffer that is emptied before it is filled again, unlike one that is topped up, can be
        made anew from the place where it began: going on reads no earlier shard.
        """
        mine = self._permutation(source.shards, epoch)[self.rank :: self.world_size]
        block: list[Record] = []
        place = Cursor(start.shard, start.record)
        for shard in range(start.shard, len(mine)):
            for number, record in enumerate(source.read_shard(int(mine[shard]))):
                if (shard, number) < (start.shard, start.record):
                    continue
                block.append(record)
                if len(block) == self.buffer:
                    yield place, block
                    block, place = [], Cursor(shard, number + 1)
        if block:
            yield place, block

    def _permutation(self, count: int, *parts: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(count)
        return np.random.default_rng([self.seed, *parts]).permutation(count)


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Give items, the next one of which a thread makes meanwhile."""
    rest = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, rest, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, rest, None)
            yield item
