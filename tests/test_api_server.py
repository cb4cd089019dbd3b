"""A server in a process of its own: slow and many clients, signals, kills, several workers."""

from __future__ import annotations

import json
import resource
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from api_fakes import new_index
from api_server import chunk, connect, read_all, request, server, status_of, talk
from lexvla_indexer import open_index
from search_fakes import FakeEncoder

SEARCH = request("POST", "/v1/search", {"text": "red"})
PUT = (
    b"PUT /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    b"Accept: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
BATCH = 64  # lines of one commit


def test_slow_bodies_time_out_and_hold_nobody_up(tmp_path: Path) -> None:
    with server(new_index(tmp_path), body_seconds=0.5, concurrency=2) as (_, port):
        slow = [connect(port) for _ in range(20)]
        for connection in slow:
            connection.sendall(SEARCH[:-5])
        assert status_of(talk(port, SEARCH)) == 200
        for connection in slow:
            answer = read_all(connection)
            assert status_of(answer) == 408
            assert b"urn:problem-type:lexvla:timeout" in answer
            connection.close()
        with connect(port) as connection:
            connection.sendall(PUT + chunk({"id": "a", "text": "red"}) + b"5\r\n{")
            lines = read_all(connection)
        assert b"urn:problem-type:lexvla:timeout" in lines
        assert b'"done": false' in lines


def test_a_thousand_clients_at_once_get_answers_or_429(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with server(new_index(tmp_path), seconds=0.01, concurrency=16) as (_, port):
        answers: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector:
            for _ in range(1000):
                connection = connect(port)
                answers[connection] = b""
                selector.register(connection, selectors.EVENT_READ)
            for connection in answers:
                connection.sendall(SEARCH)
            waiting = set(answers)
            while waiting:
                ready = selector.select(timeout=60)
                assert ready, f"{len(waiting)} clients got no answer"
                for key, _ in ready:
                    part = key.fileobj.recv(65536)
                    answers[key.fileobj] += part
                    if not part:
                        selector.unregister(key.fileobj)
                        waiting.discard(key.fileobj)
        counts = Counter(status_of(answer) for answer in answers.values())
        assert counts.keys() == {200, 429}
        assert counts[200] >= 16
        for connection, answer in answers.items():
            assert status_of(answer) != 429 or b"retry-after: 1\r\n" in answer.lower()
            connection.close()
        assert status_of(talk(port, SEARCH)) == 200


def test_a_signal_lets_what_was_begun_finish(tmp_path: Path) -> None:
    address = new_index(tmp_path)
    with server(address, seconds=0.3) as (process, port):
        with connect(port) as searching, connect(port) as putting:
            putting.sendall(PUT + chunk({"id": "a", "text": "blue"}))
            searching.sendall(SEARCH)
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(ConnectionRefusedError):
                connect(port)
            putting.sendall(chunk({"id": "b", "text": "blue"}) + b"0\r\n\r\n")
            assert status_of(read_all(searching)) == 200
            assert b'"done": true, "indexed": 2' in read_all(putting)
        assert process.wait(60) == 0
    with open_index(address) as index:
        assert index.count() == 6


def lines(start: int) -> list[dict]:
    words = ("red", "green", "blue")
    return [
        {"id": f"d{n:06}", "text": words[n % 3], "uri": str(n)} for n in range(start, start + BATCH)
    ]


@pytest.mark.parametrize("acknowledged", [1, 4])
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    address = new_index(tmp_path)
    with server(address) as (process, port), connect(port) as connection:
        stop = threading.Event()

        def send() -> None:
            try:
                connection.sendall(PUT)
                for start in range(0, 1_000_000, BATCH):
                    if stop.is_set():
                        return
                    connection.sendall(chunk(*lines(start)))
            except OSError:
                return

        sender = threading.Thread(target=send)
        sender.start()
        heard = b""
        while heard.count(b'"line"') < acknowledged:
            part = connection.recv(65536)
            assert part, heard
            heard += part
        process.kill()
        process.wait()
        stop.set()
        while True:  # what was on its way is acknowledged too
            try:
                part = connection.recv(65536)
            except OSError:
                break
            if not part:
                break
            heard += part
        sender.join()
    told = [json.loads(line) for line in heard.splitlines() if line.startswith(b'{"line"')]
    done = told[-1]["indexed"]
    assert done == BATCH * len(told)
    with open_index(address) as index:
        assert index.verify() == []
        there = index.count() - 4
        # A commit may have been made whose acknowledgement did not get out; never half of one.
        assert there >= done
        assert there % BATCH == 0
        rows = [line for start in range(0, there, BATCH) for line in lines(start)]
        documents, vectors = index.fetch([row["id"] for row in rows])
        assert [document.uri for document in documents] == [row["uri"] for row in rows]
        expected = FakeEncoder().encode_text([row["text"] for row in rows])
        assert (vectors.lexical != expected.lexical).nnz == 0
    with server(address) as (_, port):
        last = json.loads(talk(port, request("GET", "/v1/index")).split(b"\r\n\r\n")[1])
        assert last["count"] == there + 4


def test_workers_write_in_turns_and_see_each_others_commits(tmp_path: Path) -> None:
    address = new_index(tmp_path)
    with server(address, workers=2, upserts=16) as (process, port):
        answers: list[bytes] = []

        def put(name: str) -> None:
            body = chunk({"id": name, "text": "blue"}) + b"0\r\n\r\n"
            answers.append(talk(port, PUT + body))

        threads = [threading.Thread(target=put, args=(f"n{i}",)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [b'"done": true, "indexed": 1' in answer for answer in answers] == [True] * 12
        for _ in range(6):  # whichever worker answers
            found = talk(port, request("POST", "/v1/search", {"text": "blue", "k": 50}))
            hits = json.loads(found.split(b"\r\n\r\n", 1)[1])["hits"]
            assert len(hits) == 13
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
