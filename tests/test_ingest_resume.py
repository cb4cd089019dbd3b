"""Runs that are killed and started again, and what is gone from a source."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexer_fakes import ColourEncoder
from ingest_fakes import contents, manifest, new_index, picture, pictures, shard
from lexvla_indexer import Document, EmbeddedIndex, Report, index_source, pipeline
from lexvla_indexer.fingerprint import source_of

FORK = multiprocessing.get_context("fork")


class Fuse:
    """Kill this process at the n-th step, whichever thread takes it."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.lock = threading.Lock()

    def burn(self) -> None:
        with self.lock:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.burn()
            result = function(*args, **kwargs)
            self.burn()
            return result

        setattr(owner, name, wrapped)


def in_a_child(work: Callable[[], Any], steps: int) -> bool:
    """Run in a process that is killed at a step. Return whether it was."""

    def child() -> None:
        fuse = Fuse(steps)
        pipeline._COMMIT_ITEMS = 10
        for owner, name in (
            (pipeline, "load"),
            (ColourEncoder, "encode_image"),
            (EmbeddedIndex, "add"),
            (EmbeddedIndex, "delete"),
            (EmbeddedIndex, "commit"),
        ):
            fuse.around(owner, name)
        work()

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures with an index of an earlier state of it."""
    home = tmp_path_factory.mktemp("begun")
    pictures(home / "photos", range(15))
    with new_index(home / "i.lex") as index:
        index_source(home / "photos", index, ColourEncoder())
    pictures(home / "photos", range(5), shift=9)  # changed
    for number in range(10, 15):
        (home / "photos" / f"{number:03}.png").unlink()
    pictures(home / "photos", range(15, 45))
    (home / "photos" / "020.png").write_bytes(b"damaged")
    return home


def fill(path: Path, photos: Path) -> Report:
    with new_index(path) as index:
        return index_source(photos, index, ColourEncoder(), batch_size=4, prune=True)


def killed_and_run_again(begun: Path, home: Path, seed: int, kills: int) -> int:
    """Return how often the run was killed before it was left to end."""
    photos = begun / "photos"
    left = [*range(10), *range(15, 20), *range(21, 45)]
    ids = [f"{number:03}.png" for number in left]
    for name in ("whole", "broken"):
        shutil.copytree(begun / "i.lex", home / f"{name}.lex")
    assert fill(home / "whole.lex", photos).pruned == 5
    rng = random.Random(seed)
    count = 0
    while count < kills and in_a_child(
        lambda: fill(home / "broken.lex", photos), rng.randint(1, 160)
    ):
        count += 1
    report = fill(home / "broken.lex", photos)
    assert [reject.item for reject in report.rejected] == ["020.png"]
    with new_index(home / "whole.lex") as whole, new_index(home / "broken.lex") as broken:
        assert contents(broken, ids) == contents(whole, ids)
        query = ColourEncoder().encode_text(["green green red"])
        answers = [index.search(query, k=100)[0] for index in (broken, whole)]
        assert answers[0].ids == answers[1].ids
        assert answers[0].scores.tolist() == answers[1].scores.tolist()
    return count


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_ends_as_an_unbroken_one(begun: Path, tmp_path: Path, seed: int) -> None:
    assert killed_and_run_again(begun, tmp_path, seed, kills=2) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_killed_runs_end_as_unbroken_ones(begun: Path, tmp_path: Path, seed: int) -> None:
    killed_and_run_again(begun, tmp_path, seed, kills=6)


# What is gone from the source


def run(source: Any, path: Path, **options: Any) -> Report:
    with new_index(path) as index:
        return index_source(source, index, ColourEncoder(), **options)


def names(path: Path) -> list[str]:
    with EmbeddedIndex(path) as index:
        found = index.search(ColourEncoder().encode_text(["red green blue"]), k=100)[0].ids
        assert len(found) == index.count()
    return sorted(found)


def test_what_is_gone_stays_unless_it_is_pruned(tmp_path: Path) -> None:
    photos, place = pictures(tmp_path / "p", range(4)), tmp_path / "i.lex"
    run(photos, place)
    (photos / "001.png").unlink()
    assert run(photos, place).pruned == 0
    assert len(names(place)) == 4
    report = run(photos, place, prune=True)
    assert (report.pruned, report.prune_refused, report.skipped) == (1, "", 3)
    assert names(place) == ["000.png", "002.png", "003.png"]
    assert run(photos, place, prune=True).pruned == 0
    pictures(photos, [1])
    assert run(photos, place, prune=True).added == 1


def test_a_damaged_image_is_not_gone(tmp_path: Path) -> None:
    photos, place = pictures(tmp_path / "p", range(2)), tmp_path / "i.lex"
    run(photos, place)
    (photos / "001.png").write_bytes(b"damaged")
    report = run(photos, place, prune=True)
    assert (report.pruned, report.prune_refused, len(report.rejected)) == (0, "", 1)
    assert names(place) == ["000.png", "001.png"]


def test_only_documents_of_the_same_source_are_pruned(tmp_path: Path) -> None:
    place = tmp_path / "i.lex"
    first, second = pictures(tmp_path / "a", range(3)), pictures(tmp_path / "b", range(2, 5))
    run(first, place)
    run(second, place)
    with new_index(place) as index:  # of no source
        index.add(*index.fetch(["000.png"])._replace(documents=[Document("mine")]))
        index.commit()
    for photos in (first, second):
        for path in photos.iterdir():
            path.unlink()
        picture(photos / "left.png")
    assert run(first, place, prune=True).pruned == 3
    assert names(place) == ["b/002.png", "b/003.png", "b/004.png", "left.png", "mine"]
    assert run(second, place, prune=True).pruned == 3
    assert names(place) == ["b/left.png", "left.png", "mine"]


def test_an_unchanged_document_goes_over_to_the_source_that_lists_it(tmp_path: Path) -> None:
    place, lines = tmp_path / "i.lex", [{"id": name, "text": "red"} for name in "abc"]
    old = manifest(tmp_path / "m", *lines).rename(tmp_path / "m" / "old.jsonl")
    new = manifest(tmp_path / "m", *lines[:2]).rename(tmp_path / "m" / "new.jsonl")
    run(old, place)
    report = run(new, place, prune=True)
    assert (report.added, report.skipped, report.pruned) == (0, 2, 0)  # without the model
    with EmbeddedIndex(place) as index:
        known = index.fingerprints([*"abc"])
    assert source_of(known["a"]) == source_of(known["b"]) != source_of(known["c"])
    manifest(tmp_path / "m", {"id": "d", "text": "red"}).rename(old)
    assert run(old, place, prune=True).pruned == 1  # c alone: a and b are the new one's
    assert names(place) == ["a", "b", "d"]


def test_no_pruning_where_the_listing_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, place = pictures(tmp_path / "p" / "in", range(2)).parent, tmp_path / "i.lex"
    pictures(photos, [7])
    run(photos, place)

    def walk(top: Path, onerror: Callable[[OSError], None]) -> Any:
        yield str(top), ["in"], ["007.png"]
        onerror(PermissionError(13, "Permission denied", str(top / "in")))

    monkeypatch.setattr(os, "walk", walk)
    report = run(photos, place, prune=True)
    assert report.pruned == 0
    assert "Permission denied" in report.prune_refused
    assert len(names(place)) == 3


def test_no_pruning_by_a_listing_with_holes_or_without_items(tmp_path: Path) -> None:
    place, line = tmp_path / "i.lex", {"id": "a", "text": "red"}
    source = manifest(tmp_path / "m", line, {"id": "b", "text": "red"})
    run(source, place)
    manifest(tmp_path / "m", line, b"no json")
    assert "is not JSON" in run(source, place, prune=True).prune_refused
    source.write_bytes(b"")
    assert run(source, place, prune=True).prune_refused == "the source lists no items"
    assert names(place) == ["a", "b"]
    manifest(tmp_path / "m", line, {"id": "b", "text": 7})  # bad, but there
    report = run(source, place, prune=True)
    assert (report.prune_refused, report.pruned, len(report.rejected)) == ("", 0, 1)
    manifest(tmp_path / "m", line)
    assert run(source, place, prune=True).pruned == 1


def test_no_pruning_by_a_damaged_shard(tmp_path: Path) -> None:
    place = tmp_path / "i.lex"
    whole = {f"{i:03}": ("red", "red") for i in range(3)}
    source = shard(tmp_path / "s.tar", whole)
    run(source, place)
    source.write_bytes(source.read_bytes()[:3000])
    report = run(source, place, prune=True)
    assert "tar is damaged" in report.prune_refused
    assert len(names(place)) == 3
    shard(source, {"000": ("red", "red"), "001": (None, "red")})  # the second has no caption now
    report = run(source, place, prune=True)
    assert (report.prune_refused, report.pruned) == ("", 1)
    assert names(place) == ["s.tar/000", "s.tar/001"]
