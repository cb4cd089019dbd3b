"""The API over a Lucene index: the same answers, and documents that come and go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from starlette.testclient import TestClient

from api_fakes import ids
from lexvla_search.api import Settings, create_app
from search_fakes import MappingEncoder, build_index

pytestmark = pytest.mark.java


def test_a_lucene_index_is_served_and_written(tmp_path: Path) -> None:
    encoder = MappingEncoder()
    address = f"lucene:{tmp_path / 'pictures.lucene'}"
    build_index(Path(address), tmp_path / "pictures", encoder).close()
    settings = Settings(address, images=(tmp_path / "pictures",))
    with TestClient(create_app(settings, encoder), "http://localhost") as client:
        assert ids(client.post("/v1/search", json={"text": "red"})) == ["apple", "flag"]
        line = json.dumps({"id": "new", "text": "red"}).encode()
        headers = {"Content-Type": "application/x-ndjson"}
        made = client.put("/v1/documents", content=line, headers=headers)
        assert made.json()["indexed"] == 1
        found = client.post("/v1/search", json={"text": "red", "explain": True})
        assert ids(found)[0] == "new"
        assert client.delete("/v1/documents/new").json() == {"deleted": 1}
        assert client.get("/v1/documents/new").status_code == 404
        assert ids(client.post("/v1/search", json={"text": "red"})) == ["apple", "flag"]
        assert client.get("/v1/documents/apple/heatmap/red").status_code == 200
