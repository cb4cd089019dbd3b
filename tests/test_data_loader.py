from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_fakes import (
    BAD,
    COUNT,
    SOURCES,
    FakeShards,
    colour,
    fake_list,
    fake_pair,
    make_loader,
    make_source,
    number_of,
    take,
)
from lexvla.data.pairs import IndexedSource, Pair, PairList, ShardedSource, Skipped
from lexvla.errors import InputError


@pytest.fixture(scope="module", params=SOURCES)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> IndexedSource | ShardedSource:
    return make_source(request.param, tmp_path_factory.mktemp("data"))


def test_an_epoch_is_every_good_record_once(source: IndexedSource | ShardedSource) -> None:
    loader = make_loader(source, workers=2)
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
    assert [len(batch) for batch in make_loader(source, drop_last=True)] == [4, 4]


def test_every_caption_has_its_turn() -> None:
    loader = make_loader(fake_list(6))
    seen: Counter[tuple[str, str]] = Counter()
    first = set()
    for epoch in range(3):
        for batch in loader:
            seen.update(zip(batch.ids, batch.texts, strict=True))
            first.update(text[-1] for text in batch.texts if epoch == 0)
            for name, captions in zip(batch.ids, batch.captions, strict=True):
                assert captions == fake_pair(number_of(name)).texts
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
    batches = iter(make_loader(source, workers=2, batch_size=4, prefetch=3))
    next(batches)
    assert source.read <= 16
    batches.close()  # type: ignore[attr-defined]
    assert source.read <= 16


def test_a_transform_draws_the_same_again_and_may_refuse() -> None:
    def turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if image.getpixel((0, 0)) == colour(3):
            raise InputError("three", "is not wanted")
        return image.resize((1 + int(rng.integers(100)), 1))

    first = take(make_loader(fake_list(8), transform=turn), 4)
    assert take(make_loader(fake_list(8), transform=turn, workers=2), 4) == first
    assert len({image[1] for batch in first for image in batch[1]}) > 7
    loader = make_loader(fake_list(8), transform=turn)
    list(loader)
    assert loader.skipped.first == [Skipped("three", "is not wanted", 0)]


def test_what_is_skipped_is_written(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    path.write_text("of an older run\n")
    pairs = [*(fake_pair(n, broken=n == 1) for n in range(4)), Pair("p", tmp_path / "no", ("t",))]
    loader = make_loader(PairList("some", pairs), skipped_path=path, shuffle=False)
    list(loader)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found[0] == {"id": "p", "rule": f"no such file: {tmp_path / 'no'}", "epoch": -1}
    assert found[1]["id"] == "p1"
    assert "damaged or truncated" in found[1]["rule"]
    assert [Skipped(**line) for line in found] == loader.skipped.first
    for rank in range(2):
        two = make_loader(PairList("some", pairs), skipped_path=path, rank=rank, world_size=2)
        list(two)
    ranks = [tmp_path / f"skipped-{rank}.jsonl" for rank in range(2)]
    lines = [json.loads(line) for each in ranks if each.exists() for line in each.open()]
    assert sorted(line["id"] for line in lines) == ["p", "p1"]


def test_the_list_of_the_skipped_is_bounded() -> None:
    loader = make_loader(FakeShards([2000], range(1, 2000)))
    list(loader)
    assert loader.skipped.count == 1999
    assert len(loader.skipped.first) == 1000


def test_labels_that_are_required() -> None:
    two = fake_list(4, labels=["a", "b", "a", "b"])
    batch = next(iter(make_loader(two, require_labels=True, shuffle=False)))
    assert batch.labels == ["a", "b", "a", "b"]
    with pytest.raises(InputError, match="one class only, 'a', and labels are required"):
        make_loader(fake_list(2, labels=["a", "a"]), require_labels=True)
    with pytest.raises(InputError, match="has records without a label"):
        make_loader(fake_list(2, labels=["a", None]), require_labels=True)

    class Labelled(FakeShards):
        def read_shard(self, number: int) -> Any:
            for each, label in ((1, "a"), (2, "a"), (3, None)):
                yield lambda each=each, label=label: fake_pair(each, label=label)

    loader = make_loader(Labelled([3]), require_labels=True, batch_size=2)
    with pytest.raises(InputError, match="one class only, 'a'"):
        list(loader)
    assert loader.skipped.first == [Skipped("p3", "has no label, which is required", 0)]


def test_data_that_give_no_batch() -> None:
    with pytest.raises(InputError, match=r"too few records for a batch of 4 \(3 a process\)"):
        make_loader(fake_list(3), drop_last=True)
    assert [len(batch) for batch in make_loader(fake_list(3))] == [3]
    with pytest.raises(InputError, match=r"too few records for a batch of 4 \(0 a process\)"):
        make_loader(fake_list(1), rank=1, world_size=2)
    with pytest.raises(InputError, match=r"fewer shards \(1\) than there are processes \(2\)"):
        make_loader(FakeShards([9]), rank=1, world_size=2)
    with pytest.raises(InputError, match=r"too few good records for a batch of 4 \(3\); the first"):
        list(make_loader(fake_list(4, [2]), drop_last=True))
    rule = "no record that can be read; the first that cannot, 'p0': the PNG file is damaged"
    with pytest.raises(InputError, match=rule):
        list(make_loader(fake_list(2, [0, 1]), shuffle=False))
    with pytest.raises(InputError, match=r"no record that can be read$"):
        list(make_loader(FakeShards([0, 0])))


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
        make_loader(fake_list(9), **options)


def test_importing_the_sources_imports_no_large_library() -> None:
    import subprocess
    import sys

    names = "captions, hf_datasets, karpathy, loader, pairs, webdataset_shards"
    code = f"import sys; from lexvla.data import {names}; "
    code += "print([n for n in ('torch', 'datasets', 'webdataset') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
