"""What comes late is not worked on: a request whose turn does not come in time is told so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from starlette.testclient import TestClient

from api_fakes import served
from lexvla.encoding import Encoding
from lexvla_search.api import Limits
from lexvla_search.api.batcher import Batcher, Overdue, before
from search_fakes import MappingEncoder

WAIT = 1.0  # seconds: long for a thread to start, short for a test


class Gated(MappingEncoder):
    """Answer no call before the gate is open; note what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun = threading.Event(), threading.Event()
        self.texts: list[str] = []

    def encode_text(self, texts: list[str]) -> Encoding:
        self.texts += texts
        self.begun.set()
        assert self.gate.wait(60)
        return super().encode_text(texts)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def ask(client: TestClient, text: str) -> Any:
    return client.post("/v1/search", json={"text": text})


@pytest.mark.parametrize("threads", [1, 4])  # the second request waits for a thread; for the model
def test_a_request_whose_turn_does_not_come_is_turned_away(
    tmp_path: Path, pool: ThreadPoolExecutor, threads: int
) -> None:
    model = Gated()
    with served(tmp_path, model, Limits(threads=threads, wait_seconds=WAIT)) as client:
        first = pool.submit(ask, client, "red")
        assert model.begun.wait(60)
        late = ask(client, "blue")  # answered while the gate is closed
        assert (late.status_code, late.headers["retry-after"]) == (429, "1")
        assert late.json()["detail"] == "its turn did not come within 1 seconds; try again"
        model.gate.set()
        assert first.result(60).status_code == 200
        assert ask(client, "green").status_code == 200
    assert model.texts == ["red", "green"]


def test_a_place_is_free_again_for_others(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    model = Gated()
    limits = Limits(threads=1, wait_seconds=WAIT, concurrency=2)
    with served(tmp_path, model, limits) as client:
        first = pool.submit(ask, client, "red")
        assert model.begun.wait(60)
        for _ in range(2):
            assert "turn" in ask(client, "blue").json()["detail"]
        model.gate.set()
        assert first.result(60).status_code == 200


def test_documents_wait_for_as_long_as_it_takes(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    model = Gated()
    with served(tmp_path, model, Limits(threads=4, wait_seconds=WAIT)) as client:
        first = pool.submit(ask, client, "red")
        assert model.begun.wait(60)
        headers = {"Content-Type": "application/x-ndjson"}
        line = b'{"id": "n", "text": "green"}\n'
        put = pool.submit(client.put, "/v1/documents", content=line, headers=headers)
        while client.app.state.service.model.waiting < 1:  # type: ignore[attr-defined]
            time.sleep(0.01)
        assert ask(client, "blue").status_code == 429  # so the put has waited for longer too
        model.gate.set()
        assert put.result(60).json()["indexed"] == 1
        assert first.result(60).status_code == 200


def test_a_deadline_is_of_one_thread_and_holds_for_calls_that_wait() -> None:
    model = Gated()
    batcher = Batcher(model)

    def late() -> None:
        with before(time.monotonic() - 1):
            batcher.encode_text(["late"])

    with ThreadPoolExecutor(2) as pool:
        first: Future[Encoding] = pool.submit(batcher.encode_text, ["red"])
        assert model.begun.wait(60)
        with pytest.raises(Overdue):
            late()
        patient = pool.submit(batcher.encode_text, ["blue"])
        model.gate.set()
        assert [len(each.result(60)) for each in (first, patient)] == [1, 1]
    batcher.close()
    assert model.texts == ["red", "blue"]


def test_work_whose_turn_has_come_may_go_on_for_longer() -> None:
    model = Gated()
    model.gate.set()
    batcher = Batcher(model)
    deadline = time.monotonic() + WAIT

    def open_late() -> None:
        while time.monotonic() <= deadline:
            time.sleep(0.01)
        model.gate.set()

    with ThreadPoolExecutor(2) as pool, before(deadline):
        batcher.encode_text(["red"])
        model.gate.clear()
        model.begun.clear()
        other = pool.submit(batcher.encode_text, ["blue"])
        assert model.begun.wait(60)
        pool.submit(open_late)
        batcher.encode_text(["green"])  # waits for the other, past the deadline
        other.result(60)
    batcher.close()
    assert model.texts == ["red", "blue", "green"]
