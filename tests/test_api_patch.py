"""Changing a document without its image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from starlette.testclient import TestClient

from api_fakes import URL, served
from lexvla_indexer import Document, open_index
from lexvla_search.api import Settings, create_app
from search_fakes import MappingEncoder

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with served(tmp_path) as client:
        yield client


def patch(client: TestClient, name: str, **changes: Any) -> Any:
    return client.patch(f"/v1/documents/{name}", json=changes)


def found(client: TestClient, **query: Any) -> list[tuple[str, float]]:
    answer = client.post("/v1/search", json={"legs": ["lexical"], **query}).json()
    return [(hit["id"], hit["score"]) for hit in answer["hits"]]


def test_what_is_absent_stays_and_null_removes(client: TestClient, tmp_path: Path) -> None:
    before = found(client, text="red white")
    words = client.get("/v1/documents/apple/words").json()
    made = patch(client, "apple", metadata={"price": 9.5, "tags": ["a"]}).json()
    assert made["metadata"] == {"label": "a apple", "price": 9.5, "tags": ["a"]}
    assert (made["uri"], made["encoded_again"]) == ("apple.png", False)
    assert [name for name, _ in found(client, text="red", filter="price > 9")] == ["apple"]
    made = patch(client, "apple", metadata={"label": None}, text="a fruit", uri="lime.png").json()
    assert made == {
        **{"id": "apple", "uri": "lime.png", "text": "a fruit", "encoded_again": False},
        "metadata": {"price": 9.5, "tags": ["a"]},
        "image_url": "/v1/documents/apple/image?size=1024",
        "thumbnail_url": "/v1/documents/apple/image?size=256",
    }
    assert "encoded_again" not in client.get("/v1/documents/apple").json()
    assert patch(client, "apple", metadata=None, text=None, uri=None).json()["metadata"] == {}
    assert client.get("/v1/documents/apple").json()["text"] == ""
    assert found(client, text="red white") == before
    assert client.get("/v1/documents/apple/words").json() == words
    assert patch(client, "apple").status_code == 200


def test_a_text_that_was_encoded_is_encoded_again(client: TestClient) -> None:
    lines = b'{"id": "note", "text": "red"}\n{"id": "odd", "text": "zebra"}'
    assert client.put("/v1/documents", content=lines, headers=LINES).json()["indexed"] == 2
    assert patch(client, "note", metadata={"n": 1}).json()["encoded_again"] is False
    assert patch(client, "note", text="red").json()["encoded_again"] is False
    assert patch(client, "note", text="green").json()["encoded_again"] is True
    assert "note" in [name for name, _ in found(client, text="green")]
    assert "note" not in [name for name, _ in found(client, text="red")]
    assert client.get("/v1/documents/note").json()["metadata"] == {"n": 1}
    assert patch(client, "odd", text="blue").json()["encoded_again"] is True
    refused = patch(client, "note", text=None)
    assert refused.status_code == 422
    assert "a document without an image needs a text" in refused.json()["detail"]
    assert client.get("/v1/documents/note").json()["text"] == "green"


def test_vectors_from_elsewhere_stay(client: TestClient, tmp_path: Path) -> None:
    with open_index(tmp_path / "pictures.lex") as index:
        index.add([Document("given", text="red")], MappingEncoder().encode_text(["blue"]))
        index.commit()
    assert patch(client, "given", text="green").json()["encoded_again"] is False
    assert "given" in [name for name, _ in found(client, text="blue")]


@pytest.mark.parametrize(
    ("changes", "status", "rule"),
    [
        ({"colour": 1}, 422, "colour: there is no such field"),
        ({"text": 5}, 422, "text"),
        ({"metadata": {"x": {"y": 1}}}, 422, "metadata.x"),
        ({"id": "pear"}, 422, "id: there is no such field"),
        (["text"], 422, "body"),
    ],
)
def test_bad_changes_are_named(client: TestClient, changes: Any, status: int, rule: str) -> None:
    answer = client.patch("/v1/documents/apple", json=changes)
    assert answer.status_code == status
    assert rule in answer.json()["detail"]


def test_other_errors_are_those_of_a_put(client: TestClient, tmp_path: Path) -> None:
    assert patch(client, "nothing", text="red").status_code == 404
    plain = client.patch("/v1/documents/apple", content=b"{}", headers={"Content-Type": "text/x"})
    assert plain.status_code == 415
    merge = {"Content-Type": "application/merge-patch+json"}
    assert client.patch("/v1/documents/apple", content=b"{}", headers=merge).status_code == 200
    broken = client.patch("/v1/documents/apple", content=b"{", headers=merge)
    assert broken.status_code == 400
    settings = Settings(str(tmp_path / "pictures.lex"))
    with TestClient(create_app(settings, None), URL) as plain_words:
        assert patch(plain_words, "apple", metadata={"n": 1}, text="x").status_code == 200
        assert patch(plain_words, "snow", metadata={"n": 1}).status_code == 200


def test_an_index_that_may_not_be_written_says_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: Any) -> None:
        raise PermissionError(13, "Permission denied", "/secret/place")

    monkeypatch.setattr("lexvla_search.api.writing.take_writer_lock", refuse)
    line = b'{"id": "n", "text": "red"}'
    for answer in (
        client.put("/v1/documents", content=line, headers=LINES),
        patch(client, "apple", text="red"),
        client.delete("/v1/documents/apple"),
    ):
        assert answer.status_code == 507
        assert answer.json()["type"] == "urn:problem-type:lexvla:not-stored"
        assert answer.json()["detail"] == "Permission denied"


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    gzip = {"Content-Encoding": "gzip"}
    for method, path, kind in (
        ("POST", "/v1/search", "application/json"),
        ("PATCH", "/v1/documents/apple", "application/json"),
        ("PUT", "/v1/documents", LINES["Content-Type"]),
    ):
        headers = {**gzip, "Content-Type": kind}
        answer = client.request(method, path, content=b"\x1f\x8b", headers=headers)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
        assert "not as gzip" in answer.json()["detail"]
    as_is = {"Content-Encoding": "identity"}
    assert client.post("/v1/search", json={"text": "red"}, headers=as_is).status_code == 200
