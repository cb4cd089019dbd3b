"""Thumbnails of uploaded pictures: kept within a size, shown, and deleted with the document."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from PIL import Image
from starlette.testclient import TestClient

from api_fakes import png, served, text_of
from lexvla.errors import LexVLAError
from lexvla_indexer import Document, open_index
from lexvla_search.api.thumbnails import Thumbnail, Thumbnails, thumbnail_of
from lexvla_search.cli import main
from search_fakes import PICTURES, MappingEncoder

LINES = {"Content-Type": "application/x-ndjson"}


def put(client: TestClient, name: str, **line: Any) -> None:
    content = json.dumps({"id": name, **line}).encode()
    answer = client.put("/v1/documents", content=content, headers=LINES).json()
    assert (answer["indexed"], answer["rejected"]) == (1, 0)


def shown(client: TestClient, name: str) -> bytes | None:
    document = client.get(f"/v1/documents/{name}").json()
    if document["image_url"] is None:
        assert client.get(f"/v1/documents/{name}/image").status_code == 404
        return None
    answer = client.get(document["image_url"])
    assert answer.headers["content-type"] == "image/jpeg"
    return answer.content


def test_the_oldest_make_room(tmp_path: Path) -> None:
    kept = Thumbnails(tmp_path, 100)
    for n in range(4):
        kept.replace([], [Thumbnail(f"d{n}", "f", bytes(30))])
    assert [kept.has(f"d{n}", "f") for n in range(4)] == [False, True, True, True]
    kept.replace(["d1"], [Thumbnail("d1", "g", bytes(40))])  # is the newest now
    assert [kept.get(f"d{n}", "f") for n in (1, 2, 3)] == [None, bytes(30), bytes(30)]
    kept.replace(["d3", "none"], [])
    assert (kept.get("d3", "f"), kept.get("d1", "g")) == (None, bytes(40))
    other = Thumbnails(tmp_path, 60)  # another process, with less room
    other.replace([], [Thumbnail("d9", "f", bytes(10))])
    assert [kept.has(*one) for one in (("d2", "f"), ("d1", "g"), ("d9", "f"))] == [
        False,
        True,
        True,
    ]
    other.replace([], [Thumbnail("large", "f", bytes(61))])
    assert not any(kept.has(*one) for one in (("d1", "g"), ("d9", "f"), ("large", "f")))
    kept.close()
    other.close()


def test_what_is_no_file_of_thumbnails_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thumbnails.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(LexVLAError, match="thumbnails cannot be kept here"):
        Thumbnails(tmp_path, 100)
    with pytest.raises(LexVLAError, match="thumbnails cannot be kept here"):
        Thumbnails(tmp_path / "nowhere", 100)


@pytest.mark.parametrize(
    ("size", "small"), [((2000, 500), (512, 128)), ((3, 4), (3, 4)), ((1, 5000), (1, 512))]
)
def test_a_thumbnail_has_sides_of_at_most_512_pixels(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    made = Image.open(io.BytesIO(thumbnail_of(Image.new("RGB", size, "red"))))
    assert (made.size, made.format) == (small, "JPEG")


def test_an_uploaded_picture_is_shown_until_its_document_goes(tmp_path: Path) -> None:
    lime, apple = (text_of(png(PICTURES[name])) for name in ("lime", "apple"))
    with served(tmp_path, images=(), thumbnails=100_000) as client:
        assert client.get("/v1/index").json()["images"] is True
        put(client, "up", image=lime)
        put(client, "note", text="red")
        assert shown(client, "note") is None
        first = shown(client, "up")
        assert first is not None
        assert Image.open(io.BytesIO(first)).size == PICTURES["lime"].size
        hits = client.post("/v1/search", json={"text": "green"}).json()["hits"]
        assert [hit["id"] for hit in hits if hit["thumbnail_url"]] == ["up"]
        assert client.get("/v1/documents/up/heatmap/green").status_code == 200
        client.patch("/v1/documents/up", json={"metadata": {"n": 1}})
        assert shown(client, "up") == first
        put(client, "up", image=apple)
        assert shown(client, "up") not in (None, first)
        # Another program replaces the document: the old picture is not of it.
        with open_index(tmp_path / "pictures.lex") as index:
            index.add([Document("up")], MappingEncoder().encode_text(["red"]))
            index.commit()
        assert shown(client, "up") is None
        put(client, "up", image=lime)
        assert client.delete("/v1/documents/up").json() == {"deleted": 1}
        put(client, "up", text="red")
        assert shown(client, "up") is None
        put(client, "up", image=lime)
        put(client, "up", text="red")
        assert not client.app.state.service.thumbnails._find("1", "up", "")  # type: ignore[attr-defined]
    with served(tmp_path, images=()) as client:
        put(client, "up", image=lime)
        assert shown(client, "up") is None
        assert client.get("/v1/index").json()["images"] is False


def test_a_full_disk_of_thumbnails_leaves_the_document(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with served(tmp_path, images=(), thumbnails=100_000) as client:
        client.app.state.service.thumbnails._data.execute("PRAGMA query_only = ON")  # type: ignore[attr-defined]
        put(client, "up", image=text_of(png(PICTURES["lime"])))
        assert "thumbnails are not kept" in caplog.text
        assert client.get("/v1/documents/up").json()["image_url"] is None


def test_the_folder_of_thumbnails_must_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["serve", "--index", "x", "--thumbnails", "1000"]
    assert main([*given, "--thumbnail-dir", str(tmp_path / "none")]) == 2
    assert "--thumbnail-dir must name a folder" in capsys.readouterr().err
    assert main(["serve", "--index", "x", "--thumbnail-dir", str(tmp_path)]) == 2
    assert "--thumbnail-dir needs --thumbnails BYTES" in capsys.readouterr().err
