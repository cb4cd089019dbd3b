from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_fakes import (
    BAD,
    COUNT,
    SOURCES,
    FakeShards,
    colour,
    facts,
    fake_list,
    fake_pair,
    make_source,
    take,
)
from lexvla.data.loader import PairLoader
from lexvla.data.pairs import IndexedSource, Pair, PairList, ShardedSource, Skipped
from lexvla.errors import InputError

GOOD = COUNT - len(BAD)


@pytest.fixture(scope="module", params=SOURCES)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> IndexedSource | ShardedSource:
    return make_source(request.param, tmp_path_factory.mktemp("data"))


def make(source: IndexedSource | ShardedSource, **options: Any) -> PairLoader:
    chosen = {"batch_size": 4, "seed": 5, "buffer": 5, "workers": 0} | options
    return PairLoader(source, chosen.pop("batch_size"), **chosen)


def number_of(name: str) -> int:
    digits = "".join(c for c in name.rsplit("/", 1)[-1].removesuffix(".png") if c.isdigit())
    return int(digits)


def test_an_epoch_is_every_good_record_once(source: IndexedSource | ShardedSource) -> None:
    loader = make(source, workers=2)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    pairs = [
        pair for batch in batches for pair in zip(batch.ids, batch.images, batch.texts, strict=True)
    ]
    numbers = [number_of(name) for name, _, _ in pairs]
    assert sorted(numbers) == [n for n in range(COUNT) if n not in BAD]
    for number, (_, image, text) in zip(numbers, pairs, strict=True):
        assert image.mode == "RGB"
        assert image.size == (4, 3)
        assert image.getpixel((0, 0)) == colour(number)
        assert text[:-1] == f"text {number}"
    assert loader.epoch == 1
    assert loader.skipped.count == len(BAD)
    assert sorted(number_of(skip.id) for skip in loader.skipped.first) == list(BAD)
    assert {skip.epoch for skip in loader.skipped.first} == {0}
    assert [len(batch) for batch in make(source, drop_last=True)] == [4, 4]


def test_the_order_follows_from_seed_and_epoch(source: IndexedSource | ShardedSource) -> None:
    first = take(make(source), 6)
    assert take(make(source), 6) == first
    assert take(make(source, workers=3, prefetch=1), 6) == first
    names = [list(chain(*(batch[0] for batch in first[i : i + 3]))) for i in (0, 3)]
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1])
    other = [batch.ids for batch in make(source, seed=6)]
    assert list(chain(*other)) != names[0]
    straight = [number_of(n) for batch in make(source, shuffle=False) for n in batch.ids]
    assert straight == [n for n in range(COUNT) if n not in BAD]


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_after_every_batch(
    source: IndexedSource | ShardedSource, workers: int, tmp_path: Path
) -> None:
    path, straight_path = tmp_path / "skipped.jsonl", tmp_path / "straight.jsonl"
    straight = make(source, skipped_path=straight_path)
    batches = straight.forever()
    expected, states = [], [straight.state_dict()]
    for _ in range(7):  # two epochs and a batch
        expected.append(facts(next(batches)))
        states.append(straight.state_dict())
    lines = straight_path.read_text().splitlines()
    assert len(lines) == states[-1]["skipped"]["count"] >= 4
    for number, state in enumerate(states):
        killed = make(source, workers=workers, skipped_path=path)
        take(killed, min(number + 1, 7))  # it went on for a batch after its last state
        resumed = make(source, workers=workers, skipped_path=path)
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
            loader = make(source, rank=rank, world_size=ranks, batch_size=2)
            loader.epoch = epoch
            parts.append([name for batch in loader for name in batch.ids])
        together = list(chain(*parts))
        assert len(together) == len(set(together)) == GOOD


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
        return [make(source, rank=rank, **chosen) for rank in range(world_size)]

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
    loader = make(source, buffer=10, batch_size=5)
    batches = loader.forever()
    for _ in range(31):
        next(batches)
    resumed = make(source, buffer=10, batch_size=5)
    resumed.load_state_dict(loader.state_dict())
    source.opened.clear()
    expected = facts(next(batches))
    source.opened.clear()
    assert facts(next(iter(resumed))) == expected
    assert len(source.opened) == 2  # one that ended where the block begins, and the block's


def test_a_pass_that_is_left_goes_on() -> None:
    expected = [facts(batch) for batch in make(fake_list(20), workers=2)]
    loader = make(fake_list(20), workers=2)
    found = []
    for _ in range(5):
        for batch in loader:
            found.append(facts(batch))
            break
    assert found == expected
    assert loader.epoch == 0
    assert list(loader) == []
    assert loader.epoch == 1


def test_every_caption_has_its_turn() -> None:
    loader = make(fake_list(6))
    seen: Counter[tuple[str, str]] = Counter()
    first = set()
    for epoch in range(3):
        for batch in loader:
            seen.update(zip(batch.ids, batch.texts, strict=True))
            first.update(text[-1] for text in batch.texts if epoch == 0)
    assert set(seen.values()) == {1}
    assert len(seen) == 18
    assert len(first) > 1  # not the same one of every pair


def test_only_a_few_batches_are_read_ahead() -> None:
    class Counting(PairList):
        read = 0

        def __getitem__(self, number: int) -> Pair:
            self.read += 1
            return super().__getitem__(number)

    source = Counting("counting", [fake_pair(number) for number in range(100)])
    batches = iter(make(source, workers=2, batch_size=4, prefetch=3))
    next(batches)
    assert source.read <= 16
    batches.close()  # type: ignore[attr-defined]
    assert source.read <= 16


def test_a_transform_draws_the_same_again_and_may_refuse() -> None:
    def turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if image.getpixel((0, 0)) == colour(3):
            raise InputError("three", "is not wanted")
        return image.resize((1 + int(rng.integers(100)), 1))

    first = take(make(fake_list(8), transform=turn), 4)
    assert take(make(fake_list(8), transform=turn, workers=2), 4) == first
    assert len({image[1] for batch in first for image in batch[1]}) > 7
    loader = make(fake_list(8), transform=turn)
    list(loader)
    assert loader.skipped.first == [Skipped("three", "is not wanted", 0)]


def test_what_is_skipped_is_written(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    path.write_text("of an older run\n")
    pairs = [*(fake_pair(n, broken=n == 1) for n in range(4)), Pair("p", tmp_path / "no", ("t",))]
    loader = make(PairList("some", pairs), skipped_path=path, shuffle=False)
    list(loader)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found[0] == {"id": "p", "rule": f"no such file: {tmp_path / 'no'}", "epoch": -1}
    assert found[1]["id"] == "p1"
    assert "damaged or truncated" in found[1]["rule"]
    assert [Skipped(**line) for line in found] == loader.skipped.first
    for rank in range(2):
        two = make(PairList("some", pairs), skipped_path=path, rank=rank, world_size=2)
        list(two)
    ranks = [tmp_path / f"skipped-{rank}.jsonl" for rank in range(2)]
    lines = [json.loads(line) for each in ranks if each.exists() for line in each.open()]
    assert sorted(line["id"] for line in lines) == ["p", "p1"]


def test_the_list_of_the_skipped_is_bounded() -> None:
    loader = make(FakeShards([2000], range(1, 2000)))
    list(loader)
    assert loader.skipped.count == 1999
    assert len(loader.skipped.first) == 1000


def test_labels_that_are_required() -> None:
    two = fake_list(4, labels=["a", "b", "a", "b"])
    batch = next(iter(make(two, require_labels=True, shuffle=False)))
    assert batch.labels == ["a", "b", "a", "b"]
    with pytest.raises(InputError, match="one class only, 'a', and labels are required"):
        make(fake_list(2, labels=["a", "a"]), require_labels=True)
    with pytest.raises(InputError, match="has records without a label"):
        make(fake_list(2, labels=["a", None]), require_labels=True)

    class Labelled(FakeShards):
        def read_shard(self, number: int) -> Any:
            for each, label in ((1, "a"), (2, "a"), (3, None)):
                yield lambda each=each, label=label: fake_pair(each, label=label)

    loader = make(Labelled([3]), require_labels=True, batch_size=2)
    with pytest.raises(InputError, match="one class only, 'a'"):
        list(loader)
    assert loader.skipped.first == [Skipped("p3", "has no label, which is required", 0)]


def test_data_that_give_no_batch() -> None:
    with pytest.raises(InputError, match=r"too few records for a batch of 4 \(3 a process\)"):
        make(fake_list(3), drop_last=True)
    assert [len(batch) for batch in make(fake_list(3))] == [3]
    with pytest.raises(InputError, match=r"too few records for a batch of 4 \(0 a process\)"):
        make(fake_list(1), rank=1, world_size=2)
    with pytest.raises(InputError, match=r"fewer shards \(1\) than there are processes \(2\)"):
        make(FakeShards([9]), rank=1, world_size=2)
    with pytest.raises(InputError, match=r"too few good records for a batch of 4 \(3\); the first"):
        list(make(fake_list(4, [2]), drop_last=True))
    rule = "no record that can be read; the first that cannot, 'p0': the PNG file is damaged"
    with pytest.raises(InputError, match=rule):
        list(make(fake_list(2, [0, 1]), shuffle=False))
    with pytest.raises(InputError, match=r"no record that can be read$"):
        list(make(FakeShards([0, 0])))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"buffer": 0},
        {"prefetch": 0},
        {"seed": -1},
        {"workers": -1},
        {"rank": 1},
        {"world_size": 0},
    ],
)
def test_numbers_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make(fake_list(9), **options)


def test_a_state_of_something_else_is_refused() -> None:
    state = make(fake_list(9)).state_dict()
    for source, options, rule in (
        (fake_list(8), {}, "another source"),
        (fake_list(9), {"seed": 1, "batch_size": 2}, "another batch_size, seed"),
        (fake_list(9), {"rank": 1, "world_size": 2}, "another rank, world_size"),
    ):
        with pytest.raises(InputError, match=rule):
            make(source, **options).load_state_dict(state)
    with pytest.raises(InputError, match="has version 2, and this release reads 1"):
        make(fake_list(9)).load_state_dict(state | {"version": 2})


def test_importing_the_sources_imports_no_large_library() -> None:
    import subprocess
    import sys

    names = "captions, hf_datasets, karpathy, loader, pairs, webdataset_shards"
    code = f"import sys; from lexvla.data import {names}; "
    code += "print([n for n in ('torch', 'datasets', 'webdataset') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
