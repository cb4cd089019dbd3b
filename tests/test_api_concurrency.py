"""Searches and reads while documents come, change and go: whole answers, and no failure."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from api_fakes import new_index
from api_server import chunk, connect, read_all, request, server, status_of, talk
from lexvla_indexer import open_index

PUT = (
    b"PUT /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
NAMES = [f"d{i}" for i in range(40)]
ROUNDS = 10


def body_of(answer: bytes) -> dict:
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


def test_readers_see_whole_documents_while_writers_change_them(tmp_path: Path) -> None:
    address = new_index(tmp_path)
    counts: Counter[tuple[str, int]] = Counter()
    faults: list[object] = []
    done = threading.Event()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(ROUNDS):
            # The address and the words of a document always belong together.
            word = rng.choice(["red", "blue"])
            lines = [{"id": n, "text": word, "uri": word} for n in rng.sample(NAMES, 15)]
            with connect(port) as connection:
                connection.sendall(PUT + chunk(*lines) + b"0\r\n\r\n")
                counts["put", status_of(read_all(connection))] += 1
            name = rng.choice(NAMES)
            status = status_of(talk(port, request("DELETE", f"/v1/documents/{name}")))
            counts["delete", status] += 1

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            word = rng.choice(["red", "blue"])
            asked = {"text": word, "k": 50, "explain": True}
            answer = talk(port, request("POST", "/v1/search", asked))
            counts["search", status_of(answer)] += 1
            if status_of(answer) == 200:
                hits = [hit for hit in body_of(answer)["hits"] if hit["id"] in NAMES]
                faults.extend(hit for hit in hits if hit["document"]["uri"] != word)
            name = rng.choice(NAMES)
            answer = talk(port, request("GET", f"/v1/documents/{name}/words"))
            counts["words", status_of(answer)] += 1

    with server(address) as (_, port):
        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for thread in [*writers, *readers]:
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
    assert faults == []
    assert {key for key in counts if key[1] not in (200, 404)} == set()
    assert counts["put", 200] == 2 * ROUNDS
    assert counts["search", 200] > 0
    with open_index(address) as index:
        assert index.verify() == []
