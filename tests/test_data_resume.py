from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_fakes import (
    BAD,
    COUNT,
    SOURCES,
    FakeShards,
    facts,
    fake_list,
    make_loader,
    make_source,
    number_of,
    take,
)
from lexvla.data.loader import PairLoader
from lexvla.data.pairs import IndexedSource, ShardedSource
from lexvla.errors import InputError


@pytest.fixture(scope="module", params=SOURCES)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> IndexedSource | ShardedSource:
    return make_source(request.param, tmp_path_factory.mktemp("data"))


def test_the_order_follows_from_seed_and_epoch(source: IndexedSource | ShardedSource) -> None:
    first = take(make_loader(source), 6)
    assert take(make_loader(source), 6) == first
    assert take(make_loader(source, workers=3, prefetch=1), 6) == first
    names = [list(chain(*(batch[0] for batch in first[i : i + 3]))) for i in (0, 3)]
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1])
    other = [batch.ids for batch in make_loader(source, seed=6)]
    assert list(chain(*other)) != names[0]
    straight = [number_of(n) for batch in make_loader(source, shuffle=False) for n in batch.ids]
    assert straight == [n for n in range(COUNT) if n not in BAD]


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_after_every_batch(
    source: IndexedSource | ShardedSource, workers: int, tmp_path: Path
) -> None:
    path, straight_path = tmp_path / "skipped.jsonl", tmp_path / "straight.jsonl"
    straight = make_loader(source, skipped_path=straight_path)
    batches = straight.forever()
    expected, states = [], [straight.state_dict()]
    for _ in range(7):  # two epochs and a batch
        expected.append(facts(next(batches)))
        states.append(straight.state_dict())
    lines = straight_path.read_text().splitlines()
    assert len(lines) == states[-1]["skipped"]["count"] >= 4
    for number, state in enumerate(states):
        killed = make_loader(source, workers=workers, skipped_path=path)
        take(killed, min(number + 1, 7))  # it went on for a batch after its last state
        resumed = make_loader(source, workers=workers, skipped_path=path)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
        assert take(resumed, 7 - number) == expected[number:]
        if number < 7:
            assert resumed.state_dict() == states[-1]
            assert path.read_text().splitlines() == lines


def test_processes_share_the_records(source: IndexedSource | ShardedSource) -> None:
    ranks = 2
    for epoch in range(2):
        parts = []
        for rank in range(ranks):
            loader = make_loader(source, rank=rank, world_size=ranks, batch_size=2)
            loader.epoch = epoch
            parts.append([name for batch in loader for name in batch.ids])
        together = list(chain(*parts))
        assert len(together) == len(set(together)) == COUNT - len(BAD)


@given(
    sizes=st.lists(st.integers(0, 7), min_size=2, max_size=5),
    bad=st.sets(st.integers(0, 30)),
    batch_size=st.integers(1, 5),
    buffer=st.integers(1, 9),
    world_size=st.integers(1, 2),
    options=st.fixed_dictionaries(
        {"drop_last": st.booleans(), "shuffle": st.booleans(), "seed": st.integers(0, 99)}
    ),
    stop=st.integers(0, 12),
    sharded=st.booleans(),
)
def test_resumed_is_as_if_never_stopped(
    sizes: list[int],
    bad: set[int],
    batch_size: int,
    buffer: int,
    world_size: int,
    options: dict[str, Any],
    stop: int,
    sharded: bool,
) -> None:
    def loaders() -> list[PairLoader]:
        source = FakeShards(sizes, bad) if sharded else fake_list(sum(sizes) or 1, bad)
        chosen = {"batch_size": batch_size, "buffer": buffer, "world_size": world_size} | options
        return [make_loader(source, rank=rank, **chosen) for rank in range(world_size)]

    def run(loader: PairLoader, count: int) -> tuple[list[Any], str]:
        """Return batches, and the error that ends them."""
        batches = loader.forever()
        found: list[Any] = []
        try:
            while len(found) < count:
                found.append(facts(next(batches)))
        except InputError as error:
            return found, str(error)
        return found, ""

    try:
        straight, stopped, resumed = loaders(), loaders(), loaders()
    except InputError as error:  # too few records for a batch
        assert not sharded
        assert "too few records" in error.rule
        return
    for rank in range(world_size):
        expected, error = run(straight[rank], stop + 8)
        before, _ = run(stopped[rank], stop)
        resumed[rank].load_state_dict(stopped[rank].state_dict())
        after, last = run(resumed[rank], stop + 8 - len(before))
        assert before + after == expected
        assert last == error
        if not error:
            assert resumed[rank].state_dict() == straight[rank].state_dict()
            assert all(len(batch[0]) <= batch_size for batch in expected)


def test_going_on_reads_no_shard_that_is_done() -> None:
    source = FakeShards([10] * 20)
    loader = make_loader(source, buffer=10, batch_size=5)
    batches = loader.forever()
    for _ in range(31):
        next(batches)
    resumed = make_loader(source, buffer=10, batch_size=5)
    resumed.load_state_dict(loader.state_dict())
    source.opened.clear()
    expected = facts(next(batches))
    source.opened.clear()
    assert facts(next(iter(resumed))) == expected
    assert len(source.opened) == 2  # one that ended where the block begins, and the block's


def test_every_block_of_a_stream_has_its_own_order() -> None:
    loader = make_loader(FakeShards([64]), buffer=8, batch_size=8)
    numbers = [[number_of(name) for name in batch.ids] for batch in loader]
    assert [sorted(block) for block in numbers] == [list(range(n, n + 8)) for n in range(0, 64, 8)]
    assert len({tuple(number % 8 for number in block) for block in numbers}) == 8


def test_a_pass_that_is_left_goes_on() -> None:
    expected = [facts(batch) for batch in make_loader(fake_list(20), workers=2)]
    loader = make_loader(fake_list(20), workers=2)
    found = []
    for _ in range(5):
        for batch in loader:
            found.append(facts(batch))
            break
    assert found == expected
    assert loader.epoch == 0
    assert list(loader) == []
    assert loader.epoch == 1


def test_a_state_of_something_else_is_refused() -> None:
    state = make_loader(fake_list(9)).state_dict()
    for source, options, rule in (
        (fake_list(8), {}, "another source"),
        (fake_list(9), {"seed": 1, "batch_size": 2}, "another batch_size, seed"),
        (fake_list(9), {"rank": 1, "world_size": 2}, "another rank, world_size"),
    ):
        with pytest.raises(InputError, match=rule):
            make_loader(source, **options).load_state_dict(state)
    with pytest.raises(InputError, match="has version 2, and this release reads 1"):
        make_loader(fake_list(9)).load_state_dict(state | {"version": 2})
