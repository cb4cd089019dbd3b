"""Documents over HTTP: put, read, delete, and their pictures."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from PIL import Image
from starlette.testclient import TestClient

from api_fakes import ids, png, served, text_of
from lexvla_indexer import Document, open_index
from lexvla_search.api import Limits
from search_fakes import PICTURES, MappingEncoder

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with served(tmp_path) as client:
        yield client


def body(*lines: Any) -> bytes:
    return b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)


def put(client: TestClient, *lines: Any, **headers: str) -> Any:
    return client.put("/v1/documents", content=body(*lines), headers={**LINES, **headers})


def test_documents_are_put_found_read_and_deleted(client: TestClient) -> None:
    made = put(
        client,
        {"id": "t", "text": "blue", "uri": "t.txt", "metadata": {"n": 1, "tags": ["a"]}},
        {"id": "p", "image": text_of(png(PICTURES["lime"])), "text": "a label"},
    )
    assert made.json() == {"indexed": 2, "rejected": 0, "errors": []}
    assert ids(client.post("/v1/search", json={"text": "blue"})) == ["t", "flag"]
    assert ids(client.post("/v1/search", json={"text": "green"})) == ["lime", "p"]
    assert client.get("/v1/documents/t").json() == {
        **{"id": "t", "uri": "t.txt", "text": "blue"},
        "metadata": {"n": 1, "tags": ["a"]},
        **{"image_url": None, "thumbnail_url": None},
    }
    words = client.get("/v1/documents/p/words", params={"top_k": 1}).json()
    assert [word["patch"] for word in words["words"]] == [0]
    assert client.delete("/v1/documents/t").json() == {"deleted": 1}
    assert client.delete("/v1/documents/t").status_code == 404
    assert client.get("/v1/documents/t").status_code == 404
    assert client.get("/v1/index").json()["count"] == 5


def test_bad_lines_are_named_and_the_others_indexed(client: TestClient) -> None:
    answer = put(
        client,
        b"not json",
        {"id": "a"},
        {"id": "b", "text": "red", "colour": 1},
        {"id": "", "text": "red"},
        {"id": "c", "text": "red", "metadata": {"x": {}}},
        b'{"id": "d", "text": "red", "metadata": {"x": NaN}}',
        {"id": "e", "image": "%%%"},
        {"id": "f", "image": text_of(b"no image")},
        b'{"id": "g", "text": "\xff"}',
        b"",
        {"id": "h", "image_url": "http://127.0.0.1/x.png"},
        {"id": "ok", "text": "red"},
    ).json()
    assert (answer["indexed"], answer["rejected"]) == (1, 10)
    told = [(each["line"], each["id"]) for each in answer["errors"]]
    lines = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert told == list(
        zip(lines, [None, "a", "b", "", "c", "d", "e", "f", None, "h"], strict=True)
    )
    details = " ".join(each["detail"] for each in answer["errors"])
    for rule in ("colour: there is no such field", "base64", "known format", "fetches no images"):
        assert rule in details
    assert client.get("/v1/documents/ok").status_code == 200


def test_of_two_lines_with_one_id_the_last_counts(client: TestClient) -> None:
    lines = [{"id": "x", "text": "red", "uri": "1"}, {"id": "x", "text": "blue", "uri": "2"}]
    assert put(client, *lines).json()["indexed"] == 2
    assert client.get("/v1/documents/x").json()["uri"] == "2"
    assert put(client, {"id": "x", "text": "green", "uri": "3"}).json()["indexed"] == 1
    assert ids(client.post("/v1/search", json={"text": "green"})) == ["x", "lime"]
    assert client.get("/v1/index").json()["count"] == 5


def test_a_line_that_cannot_be_encoded_takes_nothing_from_an_earlier_one(
    client: TestClient,
) -> None:
    broken = text_of(png(PICTURES["lime"])[:60])
    made = put(client, {"id": "x", "text": "red"}, {"id": "x", "image": broken}).json()
    assert (made["indexed"], made["rejected"]) == (1, 1)
    assert [(each["line"], each["id"]) for each in made["errors"]] == [(2, "x")]
    assert ids(client.post("/v1/search", json={"text": "red"})) == ["x", "apple", "flag"]


def test_of_a_text_and_an_image_with_one_id_the_last_line_counts(tmp_path: Path) -> None:
    text, image = {"id": "x", "text": "red"}, {"id": "x", "image": text_of(png(PICTURES["lime"]))}
    with served(tmp_path, thumbnails=1 << 20) as client:
        for lines, found, shown in (((text, image), "green", 200), ((image, text), "red", 404)):
            assert put(client, *lines).json()["indexed"] == 2
            assert "x" in ids(client.post("/v1/search", json={"text": found}))
            assert client.get("/v1/documents/x/image").status_code == shown


def test_each_commit_is_acknowledged_as_it_is_made(client: TestClient) -> None:
    lines = [{"id": f"d{i}", "text": "red"} for i in range(130)]
    answer = put(client, *lines, {"id": "bad"}, Accept="application/x-ndjson")
    *commits, last = map(json.loads, answer.text.splitlines())
    assert [(each["line"], each["indexed"]) for each in commits] == [
        (64, 64),
        (128, 128),
        (131, 130),
    ]
    assert [each["line"] for each in commits[-1]["errors"]] == [131]
    assert last == {"done": True, "indexed": 130, "rejected": 1}


@pytest.mark.parametrize(
    "name", ["a/b", "../../etc/passwd", "a%2Fb", "é ?#&", "..", "x/words", "%"]
)
def test_an_id_is_one_part_of_the_path_whatever_is_in_it(client: TestClient, name: str) -> None:
    from urllib.parse import quote

    assert put(client, {"id": name, "text": "red"}).json()["indexed"] == 1
    # Dots alone would be taken out of the address by the client itself.
    path = quote(name, safe="").replace(".", "%2E")
    assert client.get(f"/v1/documents/{path}").json()["id"] == name
    assert client.get(f"/v1/documents/{path}/words").json()["id"] == name
    assert client.delete(f"/v1/documents/{path}").json() == {"deleted": 1}


def test_pictures_come_from_the_folder_alone(tmp_path: Path) -> None:
    encoder = MappingEncoder()
    outside = tmp_path / "secret.png"
    PICTURES["snow"].save(outside)
    with served(tmp_path) as client:
        (tmp_path / "pictures" / "link.png").symlink_to(outside)
        (tmp_path / "pictures" / "text.png").write_text("no picture")
        uris = {
            **{"absolute": str(outside), "dots": "../secret.png", "link": "link.png"},
            **{"none": "", "gone": "gone.png", "text": "text.png", "null": "a\0b"},
            "device": "/dev/zero",
            "relative": "apple.png",
        }
        with open_index(tmp_path / "pictures.lex") as index:
            documents = [Document(name, uri=uri) for name, uri in uris.items()]
            index.add(documents, encoder.encode_text(["red"] * len(uris)))
            index.commit()
        for end in ("image", "heatmap/red"):
            answer = client.get(f"/v1/documents/text/{end}")
            assert answer.status_code == 422
            assert "not an image of a known format" in answer.json()["detail"]
        for name in uris.keys() - {"relative", "text"}:
            for end in ("image", "heatmap/red"):
                answer = client.get(f"/v1/documents/{name}/{end}")
                assert answer.status_code == 404, name
                assert "secret" not in answer.text
        small = client.get("/v1/documents/apple/image", params={"size": 16})
        assert Image.open(io.BytesIO(small.content)).size == (16, 16)
        assert client.get("/v1/documents/relative/image").status_code == 200
        glow = client.get("/v1/documents/apple/heatmap/red")
        assert Image.open(io.BytesIO(glow.content)).size == (384, 384)
        assert client.get("/v1/documents/apple/heatmap/purple").status_code == 422
    with served(tmp_path, images=()) as client:
        assert "--images" in client.get("/v1/documents/apple/image").json()["detail"]


def test_a_line_and_a_stream_have_limits(tmp_path: Path) -> None:
    limits = Limits(threads=2, body_bytes=1000, upsert_bytes=6000)
    with served(tmp_path, limits=limits) as client:
        short = [{"id": f"d{i}", "text": "red"} for i in range(70)]
        answer = put(client, *short, {"id": "long", "text": "red " * 300})
        assert answer.status_code == 413
        assert "line 71" in answer.json()["detail"]
        assert answer.json()["indexed"] == 64
        assert client.get("/v1/index").json()["count"] == 4 + 64
        assert put(client, *short * 4).status_code == 413
        streamed = client.put(
            "/v1/documents", content=iter([body(*short) + b"\n"] * 4), headers=LINES
        )
        assert streamed.status_code == 413


def test_another_writer_is_waited_for_and_then_reported(tmp_path: Path) -> None:
    with served(tmp_path, limits=Limits(threads=2, writer_seconds=0.2)) as client:
        with open_index(tmp_path / "pictures.lex", create=True):
            answer = put(client, {"id": "x", "text": "red"})
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:problem-type:lexvla:writer-busy"
            assert (answer.headers["Retry-After"], answer.json()["indexed"]) == ("1", 0)
            assert client.delete("/v1/documents/apple").status_code == 503
            assert ids(client.post("/v1/search", json={"text": "red"})) == ["apple", "flag"]
        assert put(client, {"id": "x", "text": "red"}).json()["indexed"] == 1


def test_an_index_that_is_gone_is_unavailable_until_it_is_back(tmp_path: Path) -> None:
    place, away = tmp_path / "pictures.lex", tmp_path / "away"
    with served(tmp_path) as client:
        place.rename(away)
        for answer in (
            client.get("/v1/index"),
            client.get("/readyz"),
            client.get("/v1/documents"),
            client.post("/v1/search", json={"text": "red"}),
            put(client, {"id": "x", "text": "red"}),
            client.delete("/v1/documents/apple"),
        ):
            assert answer.status_code == 503, answer.text
            assert answer.json()["type"] == "urn:problem-type:lexvla:unavailable"
            assert answer.headers["Retry-After"] == "1"
            assert "no index at pictures.lex" in answer.json()["detail"]
        away.rename(place)
        assert ids(client.post("/v1/search", json={"text": "red"})) == ["apple", "flag"]
        assert put(client, {"id": "x", "text": "red"}).json()["indexed"] == 1


def test_what_another_process_commits_is_seen(client: TestClient, tmp_path: Path) -> None:
    with open_index(tmp_path / "pictures.lex") as index:
        index.delete(["apple"])
        index.add([Document("flag", text="new")], MappingEncoder().encode_text(["green"]))
        index.commit()
    assert ids(client.post("/v1/search", json={"text": "red"})) == []
    assert client.get("/v1/documents/flag").json()["text"] == "new"
    assert client.get("/v1/documents/apple").status_code == 404


def test_a_full_disk_is_told_and_what_was_committed_stays(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = client.app.state.service.writer
    real, calls = writer.put, []

    def put_once(parts: Any) -> None:
        calls.append(parts)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/place")
        real(parts)

    monkeypatch.setattr(writer, "put", put_once)
    answer = put(client, *[{"id": f"d{i}", "text": "red"} for i in range(100)])
    assert (answer.status_code, answer.json()["indexed"]) == (507, 64)
    assert answer.json()["detail"] == "No space left on device"
    assert client.get("/v1/index").json()["count"] == 4 + 64
