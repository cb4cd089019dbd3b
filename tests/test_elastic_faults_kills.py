"""Loads into Elasticsearch that are killed or kept waiting, and readers meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import elastic_fakes
from elastic_proxy import BUSY, Cut, Proxy
from indexer_fakes import ColourEncoder
from ingest_fakes import contents, new_index, pictures
from lexvla.errors import LexVLAError
from lexvla_indexer import index_source, open_index, pipeline
from lexvla_indexer.elastic import ElasticIndex, layout, writer

pytestmark = pytest.mark.elasticsearch

FORK = multiprocessing.get_context("fork")
NAMES = [f"{number:03}.png" for number in range(60)]
ENCODER = ColourEncoder()
RED = ENCODER.encode_text(["red green blue"])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send little at a time, so that there are many moments to fail."""
    monkeypatch.setattr(pipeline, "_COMMIT_ITEMS", 10)
    monkeypatch.setattr(writer, "BULK", 4)
    monkeypatch.setattr(writer, "PAUSES", (0.05, 0.1, 0.2, 0.4, 0.8, 1.6))


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with elastic_fakes.cleaned(), Proxy(elastic_fakes.url()) as between:
        yield between


@pytest.fixture
def address(proxy: Proxy, tmp_path: Path) -> str:
    return proxy.address(elastic_fakes.address(tmp_path).rpartition("/")[2])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos", range(60))


def load(photos: Path, address: str, rebuild: bool = False) -> int:
    """Do what ``lexvla index`` does. Return how many pictures were new."""
    with open_index(
        address, create=True, vocabulary=ENCODER.vocabulary, model=ENCODER.name, rebuild=rebuild
    ) as target:
        report = index_source(photos, target, ColourEncoder(), batch_size=4)
        assert not report.rejected
        if isinstance(target, ElasticIndex) and rebuild:
            target.publish()
    return report.added


@pytest.fixture
def expected(photos: Path, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Return what an embedded index of the pictures holds."""
    with new_index(tmp_path / "whole.lex", ENCODER) as whole:
        index_source(photos, whole, ColourEncoder(), batch_size=4)
        return contents(whole, NAMES)


def held(address: str) -> list[tuple[Any, ...]]:
    """Return what the index holds: each document once."""
    with open_index(address) as reader:
        (hits,) = reader.search(RED, 1000)
        assert sorted(hits.ids) == NAMES
        return contents(reader, NAMES)


def killed(proxy: Proxy, asked: str, number: int, work: Callable[[], Any]) -> None:
    """Run in a process of its own, and kill it when it asks for this for so many times."""
    came, left, done = threading.Event(), [number], threading.Event()

    def spoil(request):
        if f"{request.method} {request.target}".find(asked) >= 0 and request.method != "GET":
            left[0] -= 1
            if not left[0]:
                came.set()
                done.wait(30)
                return Cut((number % 3) / 2)  # nothing of it, half, or all comes to the server
        return None

    proxy.spoil = spoil
    process = FORK.Process(target=work)
    process.start()
    assert came.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done.set()
    proxy.spoil = lambda _: None
    assert process.exitcode == -signal.SIGKILL


def test_a_load_that_is_killed_again_and_again(address, photos, proxy, expected):
    killed(proxy, "PUT /lexvla", 1, lambda: load(photos, address))
    killed(proxy, "_mapping", 1, lambda: load(photos, address))
    for number in (2, 3, 4):
        killed(proxy, "_bulk", number, lambda: load(photos, address))
    killed(proxy, "_refresh", 1, lambda: load(photos, address))
    assert 0 < load(photos, address) < len(NAMES)
    assert held(address) == expected
    assert load(photos, address) == 0


def test_bulks_that_are_cut_in_the_middle(address, photos, proxy, expected):
    times = []

    def spoil(request):
        if request.asks("_bulk"):
            times.append(time.monotonic())
            if len(times) % 3:
                return Cut(0.5) if len(times) % 2 else Cut(1, 0.5)
        return None

    proxy.spoil = spoil
    assert load(photos, address) == len(NAMES)
    assert len(times) > 2 * len(NAMES) / 4
    proxy.spoil = lambda _: None
    assert held(address) == expected


def busy(proxy: Proxy, seconds: float, from_bulk: int) -> list[float]:
    """Let the server refuse everything for a time, from some bulk on. Return when that began."""
    begun: list[float] = []

    def spoil(request):
        if not begun and proxy.count("_bulk") >= from_bulk:
            begun.append(time.monotonic())
        return BUSY if begun and time.monotonic() < begun[0] + seconds else None

    proxy.spoil = spoil
    return begun


def test_a_server_that_is_busy_for_a_while(address, photos, proxy, expected):
    begun = busy(proxy, 1.5, 3)
    assert load(photos, address) == len(NAMES)
    assert time.monotonic() > begun[0] + 1.5
    assert held(address) == expected


@pytest.mark.slow
def test_a_server_that_is_busy_for_half_a_minute(address, photos, proxy, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "_COMMIT_ITEMS", 10)
    begun = busy(proxy, 30, 2)
    assert load(photos, address) == len(NAMES)
    assert time.monotonic() > begun[0] + 30
    assert held(address) == expected


class Watcher(threading.Thread):
    """Search all the time, by one open reader and by new ones, and keep what was seen."""

    def __init__(self, address: str, k: int) -> None:
        super().__init__()
        self.seen: set[tuple[str, ...]] = set()
        self.errors: list[Exception] = []
        self._address, self._k, self._done = address, k, threading.Event()

    def run(self) -> None:
        try:
            with open_index(self._address) as reader:
                while not self._done.is_set():
                    (hits,) = reader.search(RED, self._k)
                    reader.fetch(["000.png"])
                    with open_index(self._address) as other:
                        (fresh,) = other.search(RED, self._k)
                    self.seen |= {tuple(sorted(each.ids)) for each in (hits, fresh)}
        except (LexVLAError, LookupError, TypeError, ValueError) as error:
            self.errors.append(error)

    def stop(self) -> set[tuple[str, ...]]:
        self._done.set()
        self.join(60)
        if self.errors:
            raise self.errors[0]
        return self.seen


def test_readers_see_the_old_index_or_the_new_while_rebuilds_are_killed(
    address, photos, proxy, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(layout, "_FRESH", 0.05)
    few = pictures(tmp_path / "few", range(7))
    old, new = tuple(NAMES[:7]), tuple(NAMES)
    assert load(few, address) == 7
    there = elastic_fakes.address(tmp_path)  # past the proxy
    watchers = [Watcher(there, k) for k in (1000, 10_001)]
    for watcher in watchers:
        watcher.start()
    try:
        asked = [("PUT /lexvla", 1), ("_bulk", 1), ("_bulk", 8), ("_settings", 1), ("_aliases", 1)]
        for what, number in asked:
            killed(proxy, what, number, lambda: load(photos, address, rebuild=True))
        with open_index(address) as reader:
            assert sorted(reader.search(RED, 100)[0].ids) == list(old)
            left = reader._client.indices.get(index=f"{reader._place.name}-*").body
            assert len(left) == 2  # what the last one left unfinished
        assert load(photos, address, rebuild=True) == len(NAMES)
        with open_index(address) as reader:
            left = reader._client.indices.get(index=f"{reader._place.name}-*").body
            assert list(left) == [reader.info()["index"]]
        for folder in (few, photos, few, photos):
            load(folder, address, rebuild=True)
        time.sleep(0.2)
    finally:
        seen = [watcher.stop() for watcher in watchers]
    assert seen == [{old, new}] * 2
    assert held(address) == expected
