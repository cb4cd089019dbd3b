"""A rebuild on two nodes, of which one is killed after the swap: no search fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import elastic_fakes
from elastic_fakes import elasticsearch_server
from indexer_fakes import QUERY, VOCABULARY, documents, encode
from lexvla_indexer import ElasticIndex, open_index

pytestmark = [pytest.mark.elasticsearch, pytest.mark.slow]

KILLS = 2


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    if not elasticsearch_server.home(elasticsearch_server.VERSION).is_dir():
        pytest.skip("needs a server to kill: run scripts/elasticsearch_server.py get")
    first, second = elastic_fakes.free_port(), elastic_fakes.free_port()
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
