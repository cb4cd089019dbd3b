"""Web pages of other origins, and addresses of pictures that an <img> can load."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from PIL import Image
from starlette.testclient import TestClient

from api_fakes import served
from lexvla_indexer import Document, open_index
from lexvla_search.api import pictures
from lexvla_search.api.keys import make_key, revoke_key
from lexvla_search.cli import main
from search_fakes import MappingEncoder

SHOP = "https://shop.example"


def first(client: TestClient, **headers: str) -> dict[str, Any]:
    answer = client.post("/v1/search", json={"text": "red", "k": 1}, headers=headers)
    (hit,) = answer.json()["hits"]
    return hit


def preflight(client: TestClient, method: str, **headers: str) -> Any:
    asked = {"Origin": SHOP, "Access-Control-Request-Method": method, **headers}
    return client.options("/v1/documents/apple", headers=asked)


def test_pages_elsewhere_are_answered_only_if_their_origin_is_named(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        assert preflight(client, "DELETE").status_code == 405
        answer = client.get("/v1/index", headers={"Origin": SHOP})
        assert "access-control-allow-origin" not in answer.headers
    with served(tmp_path, origins=(SHOP,)) as client:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            wanted = {"Access-Control-Request-Headers": "authorization, content-type"}
            allowed = preflight(client, method, **wanted)
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == SHOP
            assert method in allowed.headers["access-control-allow-methods"]
        assert preflight(client, "DELETE", Origin="https://other.example").status_code == 400
        assert preflight(client, "GET", Host="shop.example").status_code == 421
        for path, status in (("/v1/index", 200), ("/v1/documents/no", 404), ("/v1/words", 422)):
            answer = client.get(path, headers={"Origin": SHOP})
            assert (answer.status_code, path) == (status, path)
            assert answer.headers["access-control-allow-origin"] == SHOP
            assert "Retry-After" in answer.headers["access-control-expose-headers"]
        other = client.get("/v1/index", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
        assert client.get("/v1/index", headers={"Host": "shop.example"}).status_code == 421


def test_failures_reach_the_page_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path, origins=(SHOP,)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        monkeypatch.setattr(service.admission, "inside", 99)
        busy = client.get("/v1/index", headers={"Origin": SHOP})
        assert (busy.status_code, busy.headers["access-control-allow-origin"]) == (429, SHOP)
        monkeypatch.undo()
        monkeypatch.setattr(service, "complete", None)
        broken = client.get("/v1/words?prefix=r", headers={"Origin": SHOP})
        assert (broken.status_code, broken.headers["access-control-allow-origin"]) == (500, SHOP)


def test_an_origin_has_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("shop.example", "https://shop.example/", "https://shop.example/a", ""):
        assert main(["serve", "--index", "x", "--cors-origin", wrong]) == 2
        assert "must be a scheme and a host without a path" in capsys.readouterr().err


def test_hits_and_documents_name_their_pictures(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        with open_index(tmp_path / "pictures.lex") as index:
            documents = [Document("a/b é", uri="apple.png"), Document("note", text="blue")]
            index.add(documents, MappingEncoder().encode_text(["blue"] * 2))
            index.commit()
        hit = first(client)
        assert hit["image_url"] == "/v1/documents/apple/image?size=1024"
        assert hit["thumbnail_url"] == "/v1/documents/apple/image?size=256"
        explained = client.post("/v1/explain", json={"text": "red", "id": "apple"}).json()["hit"]
        assert explained["image_url"] == hit["image_url"]
        odd = client.get("/v1/documents/a%2Fb%20%C3%A9").json()
        assert odd["thumbnail_url"] == "/v1/documents/a%2Fb%20%C3%A9/image?size=256"
        assert client.get(odd["thumbnail_url"]).status_code == 200
        note = client.get("/v1/documents/note").json()
        assert (note["image_url"], note["thumbnail_url"]) == (None, None)
    with served(tmp_path, images=()) as client:
        assert first(client)["image_url"] is None


def test_with_keys_an_address_is_signed_and_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    reader, _ = make_key(path, "read", "page")
    make_key(path, "read", "other")
    with served(tmp_path, keys=path, hosts=None) as client:
        hit = first(client, Authorization=f"Bearer {reader}")
        picture = client.get(hit["thumbnail_url"])
        assert Image.open(io.BytesIO(picture.content)).format == "JPEG"
        assert picture.headers["cross-origin-resource-policy"] == "cross-origin"
        assert first(client, Authorization=f"Bearer {reader}") == hit  # for browsers' caches
        place, _, query = hit["image_url"].partition("?")
        flag = place.replace("apple", "flag")
        _, expires, signature = (part.split("=")[1] for part in query.split("&"))
        for forged, status in (
            (f"{place}?size=256", 401),
            (f"{place}?expires={expires}&signature={signature}", 200),
            (f"{flag}?expires={expires}&signature={signature}", 403),
            (f"{place}?expires={int(expires) + 1}&signature={signature}", 403),
            (f"{place}?expires={expires}&signature={signature[:-1]}é", 403),
            (f"{place}?signature={signature}", 403),
            (f"/v1/documents/apple?expires={expires}&signature={signature}", 401),
        ):
            assert (client.get(forged).status_code, forged) == (status, forged)
        # Another server with the same file of keys.
        with served(tmp_path, keys=path, hosts=None) as other:
            assert other.get(hit["image_url"]).status_code == 200
        now = time.time()
        for later, status in ((3599, 200), (4201, 403)):
            monkeypatch.setattr(pictures.time, "time", lambda later=later: now + later)
            assert client.get(hit["image_url"]).status_code == status
        monkeypatch.undo()
        revoke_key(path, "other")
        assert client.get(hit["image_url"]).status_code == 403


def test_pages_elsewhere_show_only_signed_pictures(tmp_path: Path) -> None:
    with served(tmp_path, origins=(SHOP,)) as client:
        hit = first(client)
        signed = client.get(hit["image_url"]).headers
        assert signed["cross-origin-resource-policy"] == "cross-origin"
        plain = client.get("/v1/documents/apple/image")
        assert plain.headers["cross-origin-resource-policy"] == "same-origin"


def test_no_path_of_this_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    with served(tmp_path) as client:
        uris = {
            **{str(folder / "apple.png"): "apple.png", str(folder / "a" / "b.png"): "a/b.png"},
            **{"/secret/place/c.png": "c.png", (folder / "apple.png").as_uri(): "apple.png"},
            **{
                "file:///secret/d%20e.png": "d e.png",
                "http://h/secret/x.png": "http://h/secret/x.png",
            },
            **{"apple.png": "apple.png", "": ""},
        }
        with open_index(tmp_path / "pictures.lex") as index:
            documents = [Document(f"{n}", uri=uri, text="x") for n, uri in enumerate(uris)]
            index.add(documents, MappingEncoder().encode_text(["red"] * len(uris)))
            index.commit()
        for n, shown in enumerate(uris.values()):
            assert client.get(f"/v1/documents/{n}").json()["uri"] == shown
        hits = client.post("/v1/search", json={"text": "red"})
        assert str(tmp_path) not in hits.text
        assert "/secret/place" not in hits.text
        with open_index(tmp_path / "pictures.lex", create=True):  # another writer, who is named
            writer = client.app.state.service.writer  # type: ignore[attr-defined]
            monkeypatch.setattr(writer, "_seconds", 0.0)
            told = client.delete("/v1/documents/1")
        assert told.status_code == 503
        assert "pictures.lex" in told.json()["detail"]
        assert str(tmp_path) not in told.text
