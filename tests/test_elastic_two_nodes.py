"""Two nodes, of which one is killed: after a rebuild's swap no search fails; attach goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import elastic_fakes
from elastic_fakes import elasticsearch_server
from indexer_fakes import QUERY, VOCABULARY, ColourEncoder, documents, encode
from lexvla.encoding import Encoding
from lexvla_indexer import ElasticIndex, open_index
from lexvla_indexer.elastic.attaching import attach
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.filling import fill
from lexvla_indexer.pointed_images import PointedImages
from server_fakes import free_port

pytestmark = [pytest.mark.elasticsearch, pytest.mark.slow]

KILLS = 2


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    if not elasticsearch_server.home(elasticsearch_server.VERSION).is_dir():
        pytest.skip("needs a server to kill: run scripts/elasticsearch_server.py get")
    first, second = free_port(), elastic_fakes.free_port()
    try:
        elasticsearch_server.start(port=first, fresh=True, cluster=first)
        yield first, second
    finally:
        for port in (second, first):
            elasticsearch_server.stop(port)
            elasticsearch_server.forget(port)


def health(index: ElasticIndex, **wanted: Any) -> Any:
    return index._client.cluster.health(timeout="60s", **wanted)


def kill(port: int) -> None:
    number = elasticsearch_server.process(port)
    assert number is not None
    os.kill(number, signal.SIGKILL)
    while elasticsearch_server.process(port) is not None:
        time.sleep(0.05)


def test_no_search_fails(ports: tuple[int, int]) -> None:
    first, second = ports
    address = f"elasticsearch+http://127.0.0.1:{first},127.0.0.1:{second}/photos"
    names = [f"{number:02}" for number in range(20)]
    with ElasticIndex(address, True, VOCABULARY, shards=2) as index:
        index.add(documents(names), encode([{0: 1.0}] * len(names)))
        index.commit()
        done, answers = threading.Event(), []

        def ask() -> None:
            with open_index(address) as reader:
                while not done.is_set():
                    try:
                        answers.append(reader.search(QUERY, 100)[0].ids)
                    except Exception as error:  # noqa: BLE001 - each is told below
                        answers.append(error)

        for _ in range(KILLS):
            elasticsearch_server.start(port=second, fresh=True, cluster=first)
            assert health(index, wait_for_nodes=2, wait_for_status="green")["status"] == "green"
            with open_index(address, True, VOCABULARY, rebuild=True) as new:
                new.add(documents(names), encode([{0: 1.0}] * len(names)))
                asking = threading.Thread(target=ask)
                asking.start()
                new.publish()
            assert index.info()["replicas"] == 1
            kill(second)
            time.sleep(3)
            done.set()
            asking.join()
            done.clear()
            assert health(index)["number_of_nodes"] == 1
    assert len(answers) > 20
    assert [answer for answer in answers if answer != names] == []


def test_attach_goes_on_when_a_node_is_lost(ports: tuple[int, int]) -> None:
    first, second = ports
    elasticsearch_server.start(port=second, fresh=True, cluster=first)
    place = Address.parse(f"elasticsearch+http://127.0.0.1:{first},127.0.0.1:{second}/products")

    class Encoder(ColourEncoder):
        def encode_text(self, texts: Sequence[str]) -> Encoding:
            if len(self.batches) == 5:
                kill(second)
            return super().encode_text(texts)

    encoder = Encoder()
    with connect(place) as client:
        client.indices.create(
            index=place.name,
            settings={"number_of_shards": 2, "number_of_replicas": 1},
            mappings={"properties": {"title": {"type": "text"}}},
        )
        for number in range(100):
            client.index(index=place.name, id=f"{number}", document={"title": "red", "n": number})
        health = client.cluster.health(wait_for_status="green", timeout="60s")
        assert health["status"] == "green"
        made = attach(client, place, encoder, text_fields=["title"], lexical_field="lex")
        report = fill(client, place, made, encoder, PointedImages(), batch_size=10)
        assert elasticsearch_server.process(second) is None
        hits = client.search(index=place.name, size=1000)["hits"]["hits"]
    assert {hit["_id"]: hit["_source"]["n"] for hit in hits} == {f"{n}": n for n in range(100)}
    assert [hit["_source"]["lex"] for hit in hits] == [{"red": 1.0}] * 100
    assert (report.added, report.rejected) == (100, [])
