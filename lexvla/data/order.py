"""The order of an epoch's records, and positions in it to resume from."""

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
    """A position in an epoch: how many records of which block are taken.

    A block begins at a record of a shard, both counted in the order of the epoch. Without shards,
    the epoch is one block.
    """

    shard: int = 0
    record: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Order:
    """What the order depends on; with it and an epoch, a `Cursor` is enough to resume.

    Attributes:
        seed: Seed of the shuffle.
        shuffle: Whether to shuffle records.
        buffer: Records of a sharded source that are shuffled together.
        rank: Number of this process.
        world_size: Number of processes; each gets its own records.
    """

    seed: int
    shuffle: bool
    buffer: int
    rank: int
    world_size: int

    def records(
        self, source: IndexedSource | ShardedSource, epoch: int, start: Cursor, ahead: bool
    ) -> Generator[tuple[Record, Cursor]]:
        """Yield records from a position on, each with the position after it.

        With ``ahead``, a thread reads the next block of a shard meanwhile.
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
            start = Cursor()  # its count applies to the first block only

    def _blocks(
        self, source: ShardedSource, epoch: int, start: Cursor
    ) -> Iterator[tuple[Cursor, Sequence[Record]]]:
        """Cut the stream of shards into blocks of records, each with its position.

        A buffer that is emptied before it is refilled, unlike one that is topped up, can be rebuilt
        from where it began, so resuming reads no earlier shard.
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
    """Yield items while a thread makes the next one."""
    rest = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, rest, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, rest, None)
            yield item
