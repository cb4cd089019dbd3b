"""Room for decoding: images wait for it in line, and memory stays within bounds."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from starlette.requests import ClientDisconnect

from api_fakes import new_index, png, served, text_of
from api_server import request, server, status_of, talk
from lexvla_search.api import Limits, search_routes
from lexvla_search.api.batcher import Overdue
from lexvla_search.api.decoding import DecodingRoom
from search_fakes import PICTURES, MappingEncoder


def grey_of_16_bits(side: int) -> bytes:
    """Return a square PNG, small as a file, row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer, row = zlib.compressobj(9), b"\0" + b"\x12\x34" * side
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def memory_of(process: int, what: str) -> int:
    """Return a figure of /proc in MB: VmRSS, or VmHWM, the peak."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(what))
    return int(line.split()[1]) // 1024


def test_room_is_granted_in_the_order_of_asking() -> None:
    async def run() -> list[str]:
        room, seen = DecodingRoom(10), list[str]()
        gates = {name: asyncio.Event() for name in "abcd"}

        async def work(name: str, pixels: int) -> None:
            async with room.hold(pixels):
                seen.append(name)
                await gates[name].wait()

        tasks = [
            asyncio.create_task(work(*each)) for each in (("a", 6), ("b", 6), ("c", 3), ("d", 99))
        ]
        for name, began in (("a", "abc"), ("b", "abc"), ("c", "abcd"), ("d", "abcd")):
            gates[name].set()
            for _ in range(9):
                await asyncio.sleep(0)
            assert "".join(seen) == began
        await asyncio.gather(*tasks)
        assert room.held == 0
        return seen

    asyncio.run(run())


def test_who_gives_up_holds_no_room_and_no_place_in_line() -> None:
    async def run() -> None:
        room = DecodingRoom(10)

        async def hold(pixels: int, deadline: float | None = None) -> None:
            async with room.hold(pixels, deadline):
                await asyncio.sleep(9)

        first = asyncio.create_task(hold(8))
        await asyncio.sleep(0)
        with pytest.raises(Overdue):
            await hold(5, time.monotonic() + 0.01)
        gone = asyncio.create_task(hold(5))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        async with room.hold(2, time.monotonic() + 1):  # nobody is before it
            assert room.held == 10
        granted = asyncio.create_task(hold(2))
        await asyncio.sleep(0)
        granted.cancel()
        first.cancel()
        await asyncio.wait([first, granted])
        assert room.held == 0

    asyncio.run(run())


class Gated(MappingEncoder):
    """Encode no image before the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()

    def encode_image(self, images: Any) -> Any:
        self.begun.set()
        assert self.gate.wait(60)
        return super().encode_image(images)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by each image that a search opens."""
    made: list[int] = []
    real = search_routes.open_image
    monkeypatch.setattr(
        search_routes, "open_image", lambda *given: (made.append(1), real(*given))[1]
    )
    return made


def test_images_wait_for_each_other_and_texts_for_none(tmp_path: Path, opened: list[int]) -> None:
    model, asked = Gated(), {"image": text_of(png(PICTURES["lime"])), "k": 1}
    limits = Limits(threads=2, pixels=64 * 64, decoded_pixels=64 * 64, wait_seconds=1.5)
    with served(tmp_path, model, limits) as client, ThreadPoolExecutor(4) as pool:
        model.begun.clear()
        model.gate.clear()
        first = pool.submit(client.post, "/v1/search", json=asked)
        assert model.begun.wait(60)
        others = [pool.submit(client.post, "/v1/search", json=asked) for _ in range(3)]
        word = {"terms": {"red": 1.0}}
        assert client.post("/v1/search", json=word).status_code == 200
        for other in others:
            assert other.result(60).status_code == 429
        assert len(opened) == 1  # of those turned away, nothing was decoded
        model.gate.set()
        assert first.result(60).status_code == 200
        assert client.post("/v1/search", json=asked).status_code == 200


def test_images_of_a_batch_wait_for_those_of_others(tmp_path: Path, opened: list[int]) -> None:
    model, asked = Gated(), {"image": text_of(png(PICTURES["lime"])), "k": 1}
    word = {"terms": {"red": 1.0}}
    limits = Limits(threads=2, pixels=64 * 64, decoded_pixels=64 * 64, wait_seconds=1.5)
    with served(tmp_path, model, limits) as client, ThreadPoolExecutor(1) as pool:

        def status(*queries: dict[str, Any]) -> int:
            return client.post("/v1/search/batch", json={"queries": queries}).status_code

        model.begun.clear()
        model.gate.clear()
        first = pool.submit(client.post, "/v1/search", json=asked)
        assert model.begun.wait(60)
        assert status(word, word) == 200
        assert status(word, asked, asked) == 429
        assert len(opened) == 1
        model.gate.set()
        assert first.result(60).status_code == 200
        assert status(word, asked, asked) == 200


def test_an_image_of_a_batch_that_is_too_large_is_named(tmp_path: Path) -> None:
    with served(tmp_path, limits=Limits(threads=2, pixels=100)) as client:
        batch = {"queries": [{"text": "red"}, {"image": text_of(png(PICTURES["lime"]))}]}
        told = client.post("/v1/search/batch", json=batch)
    assert told.status_code == 422
    assert "queries.1" in told.json()["detail"]
    assert "the query's image" in told.json()["detail"]
    assert told.json()["errors"][0]["field"] == "queries.1"


def test_of_a_client_that_left_nothing_is_decoded(tmp_path: Path) -> None:
    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    with served(tmp_path) as client:
        run_on = client.app.state.service.run_on  # type: ignore[attr-defined]
        with pytest.raises(ClientDisconnect):
            asyncio.run(run_on(Gone(), {"it": png(PICTURES["lime"])}, pytest.fail))


@pytest.mark.slow
def test_large_images_at_once_keep_memory_within_bounds(tmp_path: Path) -> None:
    body = {"image": text_of(grey_of_16_bits(5000)), "k": 1}
    with server(new_index(tmp_path)) as (process, port), ThreadPoolExecutor(8) as pool:
        before = memory_of(process.pid, "VmHWM")
        sent = [pool.submit(talk, port, request("POST", "/v1/search", body)) for _ in range(8)]
        statuses = [status_of(each.result(90)) for each in sent]
        peak = memory_of(process.pid, "VmHWM")
    assert set(statuses) <= {200, 429}
    assert 200 in statuses
    assert peak - before < 900, f"{before} MB, then {peak} MB"
