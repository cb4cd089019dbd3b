"""The API over an Elasticsearch index: the same answers; documents come and go; outages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")
pytest.importorskip("elasticsearch", reason="needs the client: pip install 'lexvla[elasticsearch]'")

from starlette.testclient import TestClient

import elastic_fakes
from api_fakes import URL, as_found, ids
from api_server import request, server, status_of, talk
from elastic_proxy import Cut, Proxy
from hybrid_fakes import RowEncoder, filled, text_of
from lexvla_indexer import Document, open_index
from lexvla_search import Query, ReciprocalRank, Searcher, Weighted, cli, load_fusion, save_fusion
from lexvla_search.api import Limits, Settings, create_app, service
from search_fakes import PICTURES, MappingEncoder, save_pictures

pytestmark = pytest.mark.elasticsearch

NEAR = 2**-8  # the server keeps weights with 9 significant bits
LINES = {"Content-Type": "application/x-ndjson"}


def fill(address: str, folder: Path, encoder: MappingEncoder) -> None:
    save_pictures(folder)
    with open_index(
        address, create=True, vocabulary=encoder.vocabulary, model=encoder.name
    ) as index:
        documents = [Document(name, uri=f"{name}.png") for name in PICTURES]
        index.add(documents, encoder.encode_image(list(PICTURES.values())))
        index.commit()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with elastic_fakes.cleaned():
        yield elastic_fakes.address(tmp_path)


def found(client: TestClient, **asked: Any) -> list[str]:
    return ids(client.post("/v1/search", json=asked))


def test_an_elasticsearch_index_is_served_and_written(address: str, tmp_path: Path) -> None:
    encoder = MappingEncoder()
    fill(address, tmp_path, encoder)
    with TestClient(create_app(Settings(address, images=(tmp_path,)), encoder), URL) as client:
        with open_index(address) as index:
            expected = Searcher(encoder, index).search(Query("red blue"), explain=True)
        answer = client.post("/v1/search", json={"text": "red blue", "explain": True})
        assert as_found(answer.json()["hits"], Path()) == [hit.to_dict() for hit in expected]
        before = found(client, text="red")
        assert before[0] == "apple"

        lines = [{"id": "new", "text": "red"}, {"id": "a/b ü", "text": "red", "uri": "flag.png"}]
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        assert client.put("/v1/documents", content=body, headers=LINES).json()["indexed"] == 2
        assert found(client, text="red", k=2) == ["a/b ü", "new"]
        assert found(client, text="red", filter="id != new", k=1) == ["a/b ü"]
        assert client.get("/v1/documents/a%2Fb%20%C3%BC").json()["uri"] == "flag.png"
        (word,) = client.get("/v1/documents/new/words").json()["words"]
        assert (word["word"], word["weight"], word["patch"]) == ("red", pytest.approx(1), None)
        asked = {"text": "red", "id": "new"}
        hit = client.post("/v1/explain", json=asked).json()["hit"]
        assert hit["lexical"]["score"] == pytest.approx(1, rel=NEAR)

        assert client.get("/v1/documents/apple/heatmap/red").headers["content-type"] == "image/png"
        assert client.get("/v1/documents/apple/image").status_code == 200
        assert "lexvla_index_documents 6.0" in client.get("/metrics").text
        facts = client.get("/v1/index").json()
        assert (facts["count"], facts["writable"], facts["model"]) == (6, True, "fake")
        assert client.get("/readyz").json() == {"status": "ready"}

        for name in ("new", "a%2Fb%20%C3%BC"):
            assert client.delete(f"/v1/documents/{name}").json() == {"deleted": 1}
            assert client.delete(f"/v1/documents/{name}").status_code == 404
        assert client.get("/v1/documents/new/words").status_code == 404
        assert found(client, text="red") == before


def test_a_fusion_of_three_legs_is_fitted_kept_and_used(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(service, "FUSION_SECONDS", 0.0)
    rows = [{i: 1.0, (i + 1) % 6: 0.5} for i in range(6)]
    encoder = RowEncoder()
    encoder.score_weights = {"codes": 1.0}  # which does less than all legs together
    filled(address, rows, encoder).close()
    with TestClient(create_app(Settings(address), encoder), URL) as client:
        assert client.get("/v1/index").json()["fusion"] == str(Weighted({"codes": 1.0}))
        monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)
        (tmp_path / "q.tsv").write_text(
            "".join(f"q{i}\t{text_of(row)}\n" for i, row in enumerate(rows))
        )
        (tmp_path / "r.txt").write_text("".join(f"q{i} 0 d{i:02} 1\n" for i in range(6)))
        given = f"--queries {tmp_path / 'q.tsv'} --qrels {tmp_path / 'r.txt'} --json"
        assert cli.main(["fit-fusion", "--index", address, *given.split()]) == 0
        told = json.loads(capsys.readouterr().out)
        with open_index(address) as index:
            fitted = load_fusion(index)
            assert fitted is not None
            assert told["stored"]
            assert told["fusion"] == fitted.to_dict()
            assert client.get("/v1/index").json()["fusion"] == str(fitted)
            save_fusion(index, ReciprocalRank(7))
        answer = client.post("/v1/search", json={"text": text_of(rows[2])}).json()
        assert answer["query"]["fusion"] == str(ReciprocalRank(7))
        assert answer["hits"][0]["id"] == "d02"
        assert set(answer["query"]["legs"]) == {"lexical", "codes", "dense"}
        for fusion in ({}, {"fusion": "weighted"}, {"fusion": "lexical"}, {"fusion": "rrf"}):
            asked = {"text": text_of(rows[2]), "explain": True, **fusion}
            hits = client.post("/v1/search", json=asked).json()["hits"]
            assert hits
            for hit in hits:
                parts = hit["explanation"]["parts"]
                assert sum(part["part"] for part in parts) == pytest.approx(hit["score"])
                words = sum(match["part"] for match in hit["explanation"]["matches"])
                lexical = [part["part"] for part in parts if part["leg"] == "lexical"]
                assert words == pytest.approx(sum(lexical), abs=1e-9)


def test_workers_read_and_write_one_index(address: str, tmp_path: Path) -> None:
    fill(address, tmp_path, MappingEncoder())
    with server(address, workers=2) as (_, port):
        for number in range(6):
            line = json.dumps({"id": f"n{number}", "text": "red"}).encode()
            head = (
                f"PUT /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(line)}\r\n"
            )
            head += "Content-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
            assert status_of(talk(port, head.encode() + line)) == 200
            for _ in range(3):  # whichever worker answers
                assert status_of(talk(port, request("GET", f"/v1/documents/n{number}"))) == 200
        answer = talk(port, request("POST", "/v1/search", {"text": "red", "k": 10}))
        hits = json.loads(answer.split(b"\r\n\r\n", 1)[1])["hits"]
        assert {f"n{number}" for number in range(6)} <= {hit["id"] for hit in hits}


def test_an_outage_is_told_and_passes(address: str, tmp_path: Path) -> None:
    encoder = MappingEncoder()
    fill(address, tmp_path, encoder)
    broken = [False]
    with Proxy(elastic_fakes.url(), lambda _: Cut() if broken[0] else None) as between:
        through = between.address(address.rpartition("/")[2])
        made = Settings(through, limits=Limits(writer_seconds=0.5))
        with TestClient(create_app(made, encoder), URL, raise_server_exceptions=False) as client:
            asked: list[tuple[str, str, dict[str, Any]]] = [
                ("POST", "/v1/search", {"json": {"text": "red"}}),
                ("POST", "/v1/explain", {"json": {"text": "red", "id": "apple"}}),
                ("GET", "/v1/documents/apple/words", {}),
                ("GET", "/v1/index", {}),
                ("GET", "/readyz", {}),
                ("GET", "/metrics", {}),
                ("PUT", "/v1/documents", {"content": b'{"id":"n","text":"red"}', "headers": LINES}),
                ("DELETE", "/v1/documents/n", {}),
            ]
            broken[0] = True
            for method, path, given in asked:
                answer = client.request(method, path, **given)
                expected = 200 if path == "/metrics" else 503
                assert answer.status_code == expected, (path, answer.text)
                if path != "/metrics":
                    assert answer.json()["type"] == "urn:problem-type:lexvla:unavailable"
                    assert answer.headers["retry-after"] == "1"
            assert client.get("/healthz").status_code == 200
            broken[0] = False
            for method, path, given in asked:
                answer = client.request(method, path, **given)
                assert answer.status_code == 200, (path, answer.text)
