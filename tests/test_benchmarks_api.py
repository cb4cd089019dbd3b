"""The load generator of the API's benchmark: what it sends, counts and times."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from api_fakes import new_index
from lexvla_indexer import open_index
from lexvla_search import Searcher
from search_fakes import FakeEncoder

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "open_loop", raising=False)
    return importlib.import_module("open_loop")


def run(load: ModuleType, answer: Any, ask: Any) -> Any:
    """Run a server that answers each request as told, and ask it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(2)
            except asyncio.IncompleteReadError:
                break
            data = await answer(body)
            if data is None:
                break
            writer.write(data)
        writer.close()

    async def both() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await ask(load.Loop(port, [load.request("/", b"{}")]))

    return asyncio.run(both())


def says(status: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: 3\r\n\r\nabc".encode()


def test_answers_are_counted_by_status(load: ModuleType) -> None:
    told = itertools.cycle([200, 429, 200, 503])

    async def answer(body: bytes) -> bytes:
        assert body == b"{}"
        return says(next(told))

    outcome = run(load, answer, lambda loop: loop.closed(1, 0.1))
    counts, total = outcome.counts, outcome.counts.total()
    assert total >= 4
    assert counts[200] == (total + 1) // 2
    assert counts.keys() == {200, 429, 503}
    assert outcome.rate == counts[200] / outcome.seconds


def test_a_lost_connection_is_no_answer(load: ModuleType) -> None:
    async def answer(body: bytes) -> None:
        return None

    outcome = run(load, answer, lambda loop: loop.open(50, 0.2))
    assert outcome.counts.keys() == {0}
    assert outcome.rate == 0


def test_by_the_clock_requests_do_not_wait_for_answers(load: ModuleType) -> None:
    gate = asyncio.Event()
    waiting = 0

    async def answer(body: bytes) -> bytes:
        nonlocal waiting
        waiting += 1
        if waiting == 10:
            gate.set()
        await asyncio.wait_for(gate.wait(), 10)
        return says(200)

    # Ten requests must be under way before the first is answered.
    outcome = run(load, answer, lambda loop: loop.open(100, 0.4))
    assert outcome.counts[200] == waiting >= 10
    assert min(outcome.took[200]) >= 0


def test_percentiles(load: ModuleType) -> None:
    outcome = load.Outcome(2.0, {200: [0.4, 0.1, 0.3, 0.2], 429: [9.0]})
    assert [outcome.percentile(p) for p in (0, 25, 50, 99)] == [0.1, 0.2, 0.3, 0.4]
    assert outcome.percentile(50, 429) == 9.0
    assert outcome.rate == 2.0
    assert outcome.percentile(50, 503) != outcome.percentile(50, 503)  # not a number


def test_connections_that_the_server_has_closed_are_not_used(load: ModuleType) -> None:
    async def ask() -> Any:
        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(says(200))
            writer.close()

        outcome = load.Outcome()
        async with await asyncio.start_server(once, "127.0.0.1", 0) as server:
            loop = load.Loop(server.sockets[0].getsockname()[1], [load.request("/", b"{}")])
            for _ in range(3):
                await loop._ask(outcome, 0.0)
                while not loop._idle[0][0].at_eof():
                    await asyncio.sleep(0.01)
        return outcome.counts

    assert asyncio.run(ask()) == {200: 3}


def test_a_turn_counts_time_and_processor_time_of_its_answers(
    load: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = importlib.import_module("api_against")
    spent = iter([1.0, 3.5])
    monkeypatch.setattr(against.Server, "_spent", lambda self: next(spent))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = against.Server(None, listening.getsockname()[1])
        other, _ = listening.accept()
        with other:
            other.sendall(says(200) * 3 + says(503))
            assert server.ask(b"first") == b"abc"
            server.turn([b"second", b"third"])
            assert (len(server.times), server.processor) == (2, 2.5)
            with pytest.raises(SystemExit, match="503 X"):
                server.ask(b"fourth")


def test_answers_are_the_same_but_for_their_times_and_ids(load: ModuleType) -> None:
    own = importlib.import_module("api_against")._OWN
    one = b'{"hits":[],"took_ms":{"encode":1.5,"search":2},"request_id":"a1"}'
    other = b'{"hits":[],"took_ms":{"encode":21.5,"search":2},"request_id":"b2"}'
    assert own.sub(b"", one) == own.sub(b"", other) == b'{"hits":[],,}'


def test_parts_of_a_search_add_up_to_what_it_takes(
    load: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api = importlib.import_module("api")
    now = itertools.count()
    monkeypatch.setattr(api.time, "perf_counter", lambda: float(next(now)))
    with open_index(new_index(tmp_path)) as index:
        searcher = Searcher(FakeEncoder(), index)
        parts = api.parts_of(searcher, [{"text": "red", "k": 1, "explain": True}], 0.0)
        assert searcher.search("red", 1)  # and it is as it was
    # A call between two readings of this clock takes 1, and what is around it counts the readings.
    assert {name: parts[name] for name in ("encode", "fetch", "explain", "JSON")} == {
        "encode": 1.0,
        "fetch": 1.0,
        "explain": 1.0,
        "JSON": 1.0,
    }
    assert parts["search"] > 0
    assert api.parts_table({"encode": 0.001, "JSON": 0.002}, 0.004)[2:] == [
        "| encode | 1.00 | 25% |",
        "| JSON | 2.00 | 50% |",
        "| HTTP, validation, threads, log and metrics | 1.00 | 25% |",
        "| all | 4.00 | 100% |",
    ]
