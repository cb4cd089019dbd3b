"""The Python client against a server of this process, and images that the server fetches."""

from __future__ import annotations

import asyncio
import io
import json
import math
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

import numpy as np
from PIL import Image

from api_fakes import new_index, png, served
from api_server import server
from lexvla.errors import InputError, OptionalDependencyError
from lexvla_search.api import Limits
from lexvla_search.client import ApiError, AsyncClient, Client
from search_fakes import PICTURES


class Waited:
    """Wait for each answer of an asynchronous client."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def wait(given: Any, options: Any) -> Any:
            return await method(*given, **options)

        return lambda *given, **options: self._runner.run(wait(given, options))


@pytest.fixture(scope="module", params=[Client, AsyncClient])
def client(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Any]:
    address = new_index(tmp_path_factory.mktemp("api"))
    with server(address) as (_, port), asyncio.Runner() as runner:
        made = request.param(f"http://127.0.0.1:{port}")
        used = made if isinstance(made, Client) else Waited(made, runner)
        yield used
        used.close()


def test_both_clients_have_the_same_methods() -> None:
    names = {name for name in vars(Client) if not name.startswith("_")}
    assert names == {name for name in vars(AsyncClient) if not name.startswith("_")}


def test_the_client_searches_explains_and_encodes(client: Client, tmp_path: Path) -> None:
    answer = client.search("red", k=1, explain=True)
    (hit,) = answer["hits"]
    assert (hit["id"], answer["query"]["description"]) == ("apple", '"red"')
    unknown = client.search("gren")["query"]["unknown"]
    assert unknown == [{"word": "gren", "nearest": ["green"]}]
    PICTURES["lime"].save(tmp_path / "lime.png")
    lime = tmp_path / "lime.png"
    images: list[Any] = [png(PICTURES["lime"]), lime, str(lime), PICTURES["lime"]]
    for image in images:
        assert client.search(image=image, k=1)["hits"][0]["id"] == "lime"
    many = client.search_many([{"image": image, "k": 1} for image in images])
    assert [answer["hits"][0]["id"] for answer in many] == ["lime"] * 4
    words = [item["words"] for item in client.encode(images=images, top_k=1)]
    assert words == [client.words("lime", 1)] * 4
    assert client.upsert({"id": f"i{i}", "image": each} for i, each in enumerate(images)) == {
        "indexed": 4,
        "rejected": 0,
        "errors": [],
    }
    for i in range(4):
        assert client.words(f"i{i}", 1) == words[0]
        client.delete(f"i{i}")
    with pytest.raises(ApiError, match="give either texts or images"):
        client.encode(["red"], images=images)
    for call in (
        lambda: client.search(image=3),  # type: ignore[arg-type]
        lambda: client.search_many([{"image": 3}]),
        lambda: client.encode(images=[3]),  # type: ignore[list-item]
        lambda: client.upsert([{"id": "i", "image": 3}]),
    ):
        with pytest.raises(InputError, match="or a PIL image, not int"):
            call()
    assert client.explain("flag", "red")["rank"] == 2
    assert client.encode(["red"])[0]["words"][0]["word"] == "red"
    assert len(client.encode(images=[png(PICTURES["lime"])] * 3, top_k=1)) == 3
    assert client.complete("bl") == ["blue", "black"]
    assert client.index()["count"] == 4


def test_the_client_puts_reads_and_deletes(client: Client) -> None:
    odd = "a/b ../é"
    documents = [{"id": odd, "text": "blue"}, {"id": "p", "image": png(PICTURES["lime"])}]
    made = client.upsert(iter([*documents, {"id": "bad"}]))
    assert (made["indexed"], made["rejected"], made["errors"][0]["id"]) == (2, 1, "bad")
    assert client.get(odd)["text"] == "blue"
    assert [word["word"] for word in client.words(odd)] == ["blue"]
    patched = client.patch(odd, metadata={"n": 1}, text="green")
    assert (patched["metadata"], patched["encoded_again"]) == ({"n": 1}, True)
    for name in (odd, "p"):
        client.delete(name)
    with pytest.raises(ApiError, match="no document") as caught:
        client.get(odd)
    assert caught.value.status == 404
    assert caught.value.problem["type"] == "urn:problem-type:lexvla:not-found"
    assert Image.open(io.BytesIO(client.image("apple", size=20))).size == (20, 20)
    assert Image.open(io.BytesIO(client.heatmap("apple", "red"))).format == "PNG"
    with pytest.raises(ApiError, match="there is no such field") as caught:
        client.search("red", colour=1)
    assert caught.value.status == 422


def test_the_client_takes_plain_inputs(client: Client) -> None:
    metadata = {"n": np.int64(3), "day": date(2024, 1, 2), "none": None}
    assert client.upsert([{"id": "plain", "text": "red", "metadata": metadata}])["indexed"] == 1
    assert client.get("plain")["metadata"] == {"n": 3, "day": "2024-01-02"}
    changed = client.patch("plain", metadata={"n": np.float32(0.5), "day": None})
    assert changed["metadata"] == {"n": 0.5}
    found = client.documents(filter="n < 1", sort="-n")["documents"]
    assert [document["id"] for document in found] == ["plain"]
    client.delete("plain")
    with pytest.raises(InputError, match="'id': each document must be values by name"):
        client.upsert({"id": "plain"})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_address_without_its_scheme_is_named(kind: Any) -> None:
    with pytest.raises(InputError, match=r"'localhost:8080': .* must start with http://"):
        kind("localhost:8080")


def test_a_key_that_no_header_holds_is_not_shown() -> None:
    with pytest.raises(InputError, match="'key': must be printable ASCII") as caught:
        Client("http://127.0.0.1:9", key="schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel")
    assert "ssel" not in str(caught.value)


def test_one_item_is_no_list_of_them(client: Client) -> None:
    for query in ("red", {"text": "red"}):
        with pytest.raises(TypeError, match="a list of queries, not a single one"):
            client.search_many(query)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a list of texts or images, not a single one"):
        client.encode("red")
    with pytest.raises(TypeError, match="a list of texts or images, not a single one"):
        client.encode(images=b"...")  # type: ignore[arg-type]


def test_no_server_is_an_error_of_the_client() -> None:
    with pytest.raises(ApiError, match=r"does not answer: http://127\.0\.0\.1:9") as caught:
        Client("http://127.0.0.1:9").index()
    assert caught.value.status == 0
    with pytest.raises(ApiError):
        asyncio.run(AsyncClient("http://127.0.0.1:9").index())


class Answers(BaseHTTPRequestHandler):
    """Answer by path, and note what was asked."""

    asked: list[str]
    statuses: list[tuple[int, dict[str, str]]]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/lime.png":
            self._answer(200, png(PICTURES["lime"]))
        elif self.path == "/away":
            self._answer(302, b"", Location="/lime.png")
        elif self.path == "/large":
            self._answer(200, bytes(200_000))
        elif self.path.startswith("/v1/") and self.statuses:
            status, headers = self.statuses.pop(0)
            self._answer(status, b'{"words": ["x"], "title": "busy"}', **headers)
        elif self.path.startswith("/v1/index"):
            self._answer(200, b"<html>")
        else:
            self._answer(404, b"")

    def _answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[ThreadingHTTPServer]:
    """Run a server of images."""
    Answers.asked, Answers.statuses = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_busy_server_is_asked_again_when_it_says(elsewhere: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{elsewhere.server_port}"
    Answers.statuses = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"}), (200, {})]
    assert Client(url).complete("x") == ["x"]
    assert len(Answers.asked) == 3
    Answers.asked, Answers.statuses = [], [(429, {"Retry-After": "0"}), (200, {})]
    assert asyncio.run(AsyncClient(url).complete("x")) == ["x"]
    assert len(Answers.asked) == 2
    Answers.statuses = [(429, {"Retry-After": "0"})] * 3
    with pytest.raises(ApiError, match="busy"):
        Client(url, retries=1).complete("x")
    assert len(Answers.statuses) == 1


def test_a_server_of_something_else_is_named(elsewhere: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{elsewhere.server_port}"
    with pytest.raises(ApiError, match=f"not JSON: {url}/v1/index") as caught:
        Client(url).index()
    assert caught.value.status == 200
    with pytest.raises(ApiError, match=f"status 404: {url}/v1/words"):
        Client(url).complete("x")


def test_fetched_images_count_as_received(elsewhere: ThreadingHTTPServer, tmp_path: Path) -> None:
    host = f"127.0.0.1:{elsewhere.server_port}"
    query = {"image_url": f"http://{host}/lime.png"}
    body = json.dumps({"queries": [query] * 3}).encode()
    limits = Limits(threads=2, received_bytes=len(body) + 3 * len(png(PICTURES["lime"])) - 1)
    headers = {"Content-Type": "application/json"}
    with served(tmp_path, image_hosts=(host,), limits=limits) as client:
        two = client.post("/v1/search/batch", json={"queries": [query] * 2})
        three = client.post("/v1/search/batch", content=body, headers=headers)
        assert (two.status_code, three.status_code) == (200, 429)
        assert client.app.state.service.intake.held == 0  # type: ignore[attr-defined]


def test_images_are_fetched_from_allowed_hosts_alone(
    elsewhere: ThreadingHTTPServer, tmp_path: Path
) -> None:
    host = f"127.0.0.1:{elsewhere.server_port}"
    limits = Limits(threads=2, body_bytes=100_000)
    with served(tmp_path, image_hosts=(host,), limits=limits) as client:

        def ask(address: str) -> Any:
            return client.post("/v1/search", json={"image_url": address, "k": 1})

        found = ask(f"http://{host}/lime.png")
        assert found.json()["hits"][0]["id"] == "lime"
        line = f'{{"id": "u", "image_url": "http://{host}/lime.png"}}'.encode()
        put = client.put(
            "/v1/documents", content=line, headers={"Content-Type": "application/x-ndjson"}
        )
        assert put.json()["indexed"] == 1
        refusals = {
            f"http://{host}/away": "302",
            f"http://{host}/none": "404",
            f"http://{host}/large": "larger than",
        }
        for address, rule in refusals.items():
            answer = ask(address)
            assert answer.status_code == 422
            assert rule in answer.json()["detail"]
        asked = len(Answers.asked)
        for address in (
            "http://127.0.0.1/lime.png",
            f"http://localhost:{elsewhere.server_port}/lime.png",
            f"http://user:word@{host}/lime.png",
            f"http://127.0.0.1:{elsewhere.server_port}@example.org/",
            f"ftp://{host}/lime.png",
            "file:///etc/passwd",
            f"//{host}/lime.png",
            "http://[",
            "\n",
        ):
            assert ask(address).status_code == 422, address
        assert len(Answers.asked) == asked


def test_without_the_extra_the_client_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(OptionalDependencyError, match=r"lexvla\[serve\]"):
        Client("http://127.0.0.1:1")


def test_scores_come_through_whole(client: Client) -> None:
    (hit,) = client.search("red", k=1, explain=True)["hits"]
    assert hit["explanation"] is not None
    parts = [part["part"] for part in hit["explanation"]["parts"]]
    assert math.isclose(math.fsum(parts), hit["score"])


def test_ids_of_dots_are_no_way_up(client: Client) -> None:
    for name in (".", "..", "...", "../.."):
        client.upsert([{"id": name, "text": "red"}])
        assert client.get(name)["id"] == name
        assert client.words(name)[0]["word"] == "red"
        client.delete(name)
        with pytest.raises(ApiError, match="no document"):
            client.get(name)
