"""Rebuilding an Elasticsearch index: readers see the old one or the new one, whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import elastic_fakes
from elastic_proxy import Answer, Proxy, Request
from indexer_fakes import QUERY, VOCABULARY, documents, encode, fill
from lexvla.errors import (
    EngineUnavailableError,
    IndexMissingError,
    InputError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import ElasticIndex, open_index
from lexvla_indexer.elastic import layout
from lexvla_indexer.elastic.connection import Address, following
from lexvla_indexer.elastic.refusals import refusal

pytestmark = pytest.mark.elasticsearch


@pytest.fixture(autouse=True, scope="module")
def _cleaned() -> Iterator[None]:
    with elastic_fakes.cleaned():
        yield


def test_a_rebuilt_index_shows_at_once_and_whole(tmp_path):
    address = elastic_fakes.address(tmp_path)
    other = Vocabulary(f"other{i}" for i in range(12))
    with open_index(address, create=True, vocabulary=VOCABULARY, model="one") as index:
        fill(index, "a", "b", "c")
    reader = open_index(address)
    with pytest.raises(VocabularyMismatchError):
        open_index(address, create=True, vocabulary=other)
    with open_index(address, True, other, "two", rebuild=True) as index:
        index.add(documents("cd"), encode([{0: 1.0}] * 2))
        index.commit()
        assert reader.search(QUERY)[0].ids == ["a", "b", "c"]
        assert index.search(QUERY)[0].ids == ["c", "d"]
        old = reader.info()["index"]
        index.publish()
        assert reader.search(QUERY)[0].ids == ["c", "d"]
        assert (reader.model, reader.vocabulary) == ("two", other)
        assert reader.info()["index"] != old
        fill(index, "e")
    assert reader.count() == 3
    with open_index(address, True, other, rebuild=True) as index:  # closed before it is published
        fill(index, "z")
        built = index.info()["index"]
    assert reader.count() == 3
    assert built not in reader._client.indices.get(index="lexvla-test-*").body
    with pytest.raises(UnsupportedError, match="not opened to be rebuilt"):
        reader.publish()
    reader.close()


def test_what_a_killed_rebuild_left_is_deleted_by_the_next(tmp_path):
    address = elastic_fakes.address(tmp_path)
    left = ElasticIndex(address, True, VOCABULARY, rebuild=True)  # its process lives on
    fill(left, "a")
    first = left._store.index
    with ElasticIndex(address, True, VOCABULARY, rebuild=True, shards=2) as index:
        fill(index, "b")
        index.publish()
        assert index.info()["shards"] == 2
        assert first not in index._client.indices.get(index="lexvla-test-*").body
    with open_index(address) as reader:
        assert reader.search(QUERY)[0].ids == ["b"]
    left.add(documents("z"), encode([{0: 1.0}]))
    with pytest.raises(IndexMissingError):
        left.commit()
    left._store.check = lambda: None  # it looked just before the index went
    with pytest.raises(EngineUnavailableError, match="alias"):
        left.commit()
    left.close()
    with open_index(address) as reader:
        assert reader.count() == 1


def test_an_index_is_rebuilt_only_under_its_own_name(tmp_path):
    address = elastic_fakes.address(tmp_path)
    with ElasticIndex(address, True, VOCABULARY) as index:
        fill(index, "a")
        own, name = index._store.index, f"{Address.parse(address).name}-live"
        index._client.indices.put_alias(index=own, name=name)
        for other in (f"{address}-live", f"{address.rpartition('/')[0]}/{own}"):
            with open_index(other) as reader:
                assert reader.search(QUERY)[0].ids == ["a"]
            with pytest.raises(UnsupportedError, match=f"means {own}, which was made under"):
                ElasticIndex(other, True, VOCABULARY, rebuild=True)
        assert index.count() == 1


def test_a_writer_whose_index_was_rebuilt_for_other_vectors(tmp_path):
    address = elastic_fakes.address(tmp_path)
    other = Vocabulary(f"other{i}" for i in range(12))
    with open_index(address, create=True, vocabulary=VOCABULARY) as writer:
        fill(writer, "a")
        with open_index(address, True, other, rebuild=True) as index:
            index.publish()
        writer.add(documents("b"), encode([{0: 1.0}]))
        with pytest.raises(VocabularyMismatchError, match="has recreated it"):
            writer.commit()
    with open_index(address, vocabulary=other) as reader:
        assert reader.count() == 0


def test_settings_survive_a_rebuild(tmp_path):
    address = elastic_fakes.address(tmp_path)
    with ElasticIndex(address, True, VOCABULARY, shards=3) as index:
        changed = {"auto_expand_replicas": False, "number_of_replicas": 2}
        index._client.indices.put_settings(index=index._store.index, settings=changed)
    with ElasticIndex(address, True, VOCABULARY, rebuild=True) as index:
        fill(index, "a")
        assert index.info()["replicas"] == 0
        index.publish()
        facts = index.info()
        assert (facts["shards"], facts["replicas"]) == (3, 2)


def rebuilt(address: str, *ids: str, keep_old: int = 0) -> None:
    with open_index(address, True, VOCABULARY, rebuild=True) as index:
        fill(index, *ids)
        index.publish(keep_old)


def test_kept_indices_and_the_way_back(tmp_path, monkeypatch):
    # Otherwise a reader goes on for a second with an index that is still there.
    monkeypatch.setattr(layout, "_FRESH", 0.0)
    address = elastic_fakes.address(tmp_path)
    name = Address.parse(address).name
    rebuilt(address, "a")
    with open_index(address) as index, pytest.raises(UnsupportedError, match="--keep-old 1"):
        index.rollback()
    late = open_index(address)
    rebuilt(address, "b", keep_old=2)
    left = ElasticIndex(address, True, VOCABULARY, rebuild=True)  # never finished
    rebuilt(address, "c", keep_old=2)
    left.close()
    with open_index(address) as index:
        numbers = [f"{name}-{number:06}" for number in (2, 1)]
        assert index.info()["kept_indices"] == numbers
        assert index.rollback() == numbers[0]
        assert index.search(QUERY)[0].ids == late.search(QUERY)[0].ids == ["b"]
        fill(late, "x")  # a writer follows
        assert index.search(QUERY)[0].ids == ["b", "x"]
        assert index.info()["kept_indices"] == [f"{name}-000004", numbers[1]]
        assert index.rollback() == numbers[1]
        assert index.search(QUERY)[0].ids == ["a"]
        with pytest.raises(UnsupportedError, match="no earlier index"):
            index.rollback()
        with pytest.raises(InputError, match=f"is not kept; kept are {name}-000004, "):
            index.rollback("photos")
        assert index.rollback(f"{name}-000004") == f"{name}-000004"
        assert index.search(QUERY)[0].ids == ["c"]
        rebuilt(address, "d", keep_old=1)
        assert index.info()["kept_indices"] == [f"{name}-000004"]
        rebuilt(address, "e")
        assert "kept_indices" not in index.info()
    late.close()


def test_a_rebuild_waits_for_the_replicas_that_the_old_index_had(tmp_path, monkeypatch):
    address = elastic_fakes.address(tmp_path)
    rebuilt(address, "a")
    monkeypatch.setattr(layout, "_COPIES_SECONDS", 0.0)
    healths = iter([{"status": "green"}, {"timed_out": True, "unassigned_shards": 1}])

    def spoil(method, target, body):
        return (200, next(healths)) if "_cluster/health" in target else None

    with ElasticIndex(address, True, VOCABULARY, rebuild=True) as index:
        fill(index, "b")
        elastic_fakes.through(index, spoil)
        with pytest.raises(EngineUnavailableError, match="1 shards of the new index are on no"):
            index.publish()
    with open_index(address) as reader:
        assert reader.search(QUERY)[0].ids == ["a"]


@pytest.mark.parametrize(
    ("status", "kind"), [(503, "no_shard_available_action_exception"), (404, "index_not_found")]
)
def test_an_alias_that_still_means_a_closed_index_is_asked_again(monkeypatch, status, kind):
    monkeypatch.setattr("lexvla_indexer.elastic.connection._SETTLING", (0.0, 0.0, 0.0))
    closed = refusal(Address("http://h:1", "x"), status, {"error": {"type": kind}})
    meant = ["old", "old", "old", "new"]

    def reader_of(_: bool) -> SimpleNamespace:
        return SimpleNamespace(index=meant.pop(0))

    def ask(reader: SimpleNamespace) -> str:
        if reader.index == "old":
            raise closed
        return reader.index

    assert following(reader_of, ask) == "new"
    meant[:] = ["old"] * 9
    with pytest.raises(type(closed)):
        following(reader_of, ask)
    assert len(meant) == 9 - 5  # the first, and one after each of four failures


def test_an_index_that_is_gone_for_good_is_not_waited_for():
    body = {"error": {"type": "index_not_found_exception"}}
    gone = refusal(Address("http://h:1", "x"), 404, body)
    looked = []

    def found(newest: bool) -> SimpleNamespace:
        looked.append(newest)
        if newest:
            raise gone
        return SimpleNamespace(index="old")

    def ask(_: SimpleNamespace) -> None:
        raise gone

    with pytest.raises(IndexMissingError):
        following(found, ask)
    assert looked == [False, True]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(503, "no_shard_available_action_exception"), (404, "index_not_found_exception")],
)
def test_a_vocabulary_is_read_while_its_index_is_being_moved(tmp_path, status, kind):
    address = elastic_fakes.address(tmp_path)
    with open_index(address, create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a")
    closed = Answer(status, {"error": {"type": kind}, "status": status})
    left = [closed, closed]

    def spoil(request: Request) -> Answer | None:
        return left.pop() if left and request.asks("=*.mappings._meta") else None

    with Proxy(elastic_fakes.url(), spoil) as proxy:
        with open_index(proxy.address(Address.parse(address).name)) as reader:
            assert reader.search(QUERY)[0].ids == ["a"]
        assert left == []


READS: dict[str, Callable[[ElasticIndex], object]] = {
    "search": lambda index: index.search(QUERY)[0].ids,
    "deep": lambda index: index.search(QUERY, 10_001)[0].ids,
    "filter": lambda index: index.search(QUERY, filter="n > 3")[0].ids,
    "fetch": lambda index: [each.id for each in index.fetch(["a", "b"]).documents],
    "count": lambda index: index.count(),
    "info": lambda index: index.info()["documents"],
}


@pytest.mark.slow
def test_no_reader_notices_that_an_index_is_rebuilt_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_FRESH", 0.0)
    address = elastic_fakes.address(tmp_path)

    def rebuild() -> None:
        with open_index(address, True, VOCABULARY, rebuild=True) as index:
            fill(index, "a", "b", "c")
            index.publish()

    rebuild()
    done = threading.Event()

    def read(ask: Callable[[ElasticIndex], object]) -> list[object]:
        """Ask one open reader and a new one, until all is done. Return each answer once."""
        seen: list[object] = []
        with open_index(address) as reader:
            while not done.is_set():
                with open_index(address) as other:
                    for answer in (ask(reader), ask(other)):
                        if answer not in seen:
                            seen.append(answer)
        return seen

    with open_index(address) as index, ThreadPoolExecutor(len(READS)) as pool:
        expected = {name: [ask(index)] for name, ask in READS.items()}
        running = {name: pool.submit(read, ask) for name, ask in READS.items()}
        try:
            for _ in range(15):
                rebuild()
        finally:
            done.set()
        assert {name: future.result() for name, future in running.items()} == expected
