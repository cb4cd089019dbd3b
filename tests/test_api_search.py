"""Searching, explaining and encoding over HTTP, held against the searcher itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from starlette.testclient import TestClient

from api_fakes import as_found, ids, new_index, png, served
from api_fakes import text_of as base64_of
from hybrid_fakes import RowEncoder, filled, text_of
from lexvla.encoding import Encoding
from lexvla.errors import UnknownDocumentError
from lexvla.images import ImageSource
from lexvla_indexer import Document, open_index
from lexvla_indexer.embedded.engine import EmbeddedIndex
from lexvla_search import Query, ReciprocalRank, Searcher, Weighted, save_fusion
from lexvla_search.api import Settings, create_app, service
from lexvla_search.candidates import Candidates
from lexvla_search.fusion import FUSIONS
from search_fakes import PICTURES, MappingEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with served(folder) as client:
        yield client


@pytest.mark.parametrize(
    "asked",
    [
        {"text": "red blue"},
        {"text": "red", "k": 1},
        {"text": "red", "offset": 1},
        {"terms": {"blue": 2.0, "green": 1.0}},
        {"text": "red black", "boost": {"red": 3.0}, "ban": ["blue"]},
        {"text": "black", "require": ["green"]},
        {"text": "black", "filter": 'label = "a lime"'},
        {"text": "red", "legs": ["lexical"], "fusion": "rrf"},
        {"text": "red", "min_score": 0.5},
        {"image": base64_of(png(PICTURES["flag"])), "region": [32, 32, 32, 32]},
    ],
)
def test_hits_are_those_of_the_searcher(client: TestClient, folder: Path, asked: dict) -> None:
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in asked.items()}
    if "image" in given:
        given["image"] = PICTURES["flag"]
    with open_index(folder / "pictures.lex") as index:
        expected = Searcher(MappingEncoder(), index).answer(Query(**given), explain=True)
    answer = client.post("/v1/search", json={**asked, "explain": True})
    assert answer.status_code == 200, answer.text
    got = answer.json()
    assert as_found(got["hits"], folder / "pictures") == [hit.to_dict() for hit in expected.hits]
    assert got["good_match"] is expected.good_match
    assert got["hits"]
    assert got["query"]["fusion"] == str(expected.fusion)
    assert got["query"]["legs"] == list(expected.legs)
    assert [(each["word"], each["weight"]) for each in got["query"]["words"]] == expected.words
    assert got["request_id"] == answer.headers["X-Request-ID"]
    for hit in got["hits"]:
        parts = hit["explanation"]["parts"]
        assert math.isclose(math.fsum(part["part"] for part in parts), hit["score"])


@pytest.mark.parametrize("fusion", [None, *FUSIONS])
def test_unknown_words_are_an_answer(client: TestClient, fusion: str | None) -> None:
    asked = {} if fusion is None else {"fusion": fusion}
    answer = client.post("/v1/search", json={"text": "a gren zebra", **asked})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["hits"], answer.json()["query"]["words"]) == ([], [])
    unknown = [{"word": "gren", "nearest": ["green"]}, {"word": "zebra", "nearest": []}]
    assert answer.json()["query"]["unknown"] == unknown
    mixed = client.post("/v1/search", json={"text": "zebra red", "k": 1}).json()
    assert [hit["id"] for hit in mixed["hits"]] == ["apple"]
    assert mixed["query"]["unknown"] == unknown[1:]
    assert client.post("/v1/search", json={"text": "red"}).json()["query"]["unknown"] == []


def test_hits_are_as_openapi_describes_them(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["components"]["schemas"]
    hit = client.post("/v1/search", json={"text": "red", "explain": True}).json()["hits"][0]
    explanation = hit["explanation"]
    for name, value in (
        ("ShownHit", hit),
        ("Document", hit["document"]),
        ("LegScore", hit["lexical"]),
        ("Explanation", explanation),
        ("LegPart", explanation["parts"][0]),
        ("TermMatch", explanation["matches"][0]),
    ):
        assert described[name]["properties"].keys() == value.keys()
        assert set(described[name]["required"]) == value.keys()


def test_hits_carry_no_explanation_unless_asked(client: TestClient) -> None:
    answer = client.post("/v1/search", json={"text": "red"})
    assert ids(answer) == ["apple", "flag"]
    assert [hit["explanation"] for hit in answer.json()["hits"]] == [None, None]
    assert answer.json()["took_ms"].keys() == {"encode", "search", "total"}


def test_an_image_may_come_as_a_part_or_as_base64(client: TestClient) -> None:
    data = png(PICTURES["lime"])
    part = {"query": (None, '{"k": 2}'), "image": ("lime.png", data, "image/png")}
    by_part = client.post("/v1/search", files=part)
    in_json = client.post("/v1/search", json={"image": base64_of(data), "k": 2})
    alone = client.post("/v1/search", files={"image": ("lime.png", data)})
    assert ids(by_part) == ids(in_json) == ids(alone)[:2]
    assert ids(by_part)[0] == "lime"


def test_one_document_is_explained_found_or_not(client: TestClient) -> None:
    found = client.post("/v1/explain", json={"text": "red", "id": "flag"}).json()["hit"]
    assert (found["id"], found["rank"]) == ("flag", 2)
    assert [match["word"] for match in found["explanation"]["matches"]] == ["red"]
    other = client.post("/v1/explain", json={"text": "red", "id": "snow"}).json()["hit"]
    assert (other["rank"], other["score"]) == (None, 0.0)
    absent = client.post("/v1/explain", json={"text": "red", "id": "nothing"})
    assert absent.status_code == 404
    assert "'nothing'" in absent.json()["detail"]


def test_documents_that_vanish_are_told_and_other_faults_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"text": "red", "id": "apple"}
    for fault, status, kind in (
        (UnknownDocumentError("apple"), 503, "unavailable"),
        (KeyError("apple"), 500, "internal"),
    ):

        def fail(*_: object, fault: Exception = fault, **__: object) -> None:
            raise fault

        with served(tmp_path / kind) as client:
            monkeypatch.setattr(Candidates, "rankings", fail)
            search = client.post("/v1/search", json={"text": "red"})
            explain = client.post("/v1/explain", json=asked)
            monkeypatch.undo()
        for answer in (search, explain):
            assert answer.status_code == status, answer.text
            assert answer.json()["type"] == f"urn:problem-type:lexvla:{kind}"


def test_texts_and_images_are_encoded(client: TestClient) -> None:
    made = client.post("/v1/encode", json={"texts": ["red blue blue", "green"], "top_k": 1})
    assert [item["words"] for item in made.json()["items"]] == [
        [{"word": "blue", "weight": pytest.approx(2 / 5**0.5), "patch": None}],
        [{"word": "green", "weight": 1.0, "patch": None}],
    ]
    files = [("image", (name, png(PICTURES[name]))) for name in ("apple", "lime")]
    items = client.post("/v1/encode", files=files).json()["items"]
    assert [{word["word"] for word in item["words"]} for item in items] == [
        {"red", "black"},
        {"green", "black"},
    ]
    patches = {word["word"]: word["patch"] for word in items[0]["words"]}
    assert patches["red"] == 6  # row 1, column 2 of four columns
    both = client.post(
        "/v1/encode", json={"texts": ["red"], "images": [base64_of(png(PICTURES["lime"]))]}
    )
    assert both.status_code == 422
    assert client.post("/v1/encode", json={}).status_code == 422


def test_many_pixels_are_encoded_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(MappingEncoder):
        counts: ClassVar[list[int]] = []

        def encode_image(self, images: list[ImageSource]) -> Encoding:
            self.counts.append(len(images))
            return super().encode_image(images)

    files = [("image", (name, png(picture))) for name, picture in PICTURES.items()]
    with served(tmp_path, Counting()) as client:
        whole = client.post("/v1/encode", files=files).json()
        monkeypatch.setattr(client.app.state.service.decoding, "most", 2 * 64 * 64)
        Counting.counts.clear()
        assert client.post("/v1/encode", files=files).json() == whole
    assert len(whole["items"]) == len(PICTURES) == 4
    assert Counting.counts == [2, 2]


def test_words_are_completed(client: TestClient) -> None:
    assert client.get("/v1/words", params={"prefix": "b"}).json() == {"words": ["blue", "black"]}
    assert client.get("/v1/words", params={"prefix": "BLU"}).json() == {"words": ["blue"]}
    assert client.get("/v1/words", params={"prefix": "x"}).json() == {"words": []}
    assert client.get("/v1/words").status_code == 422


def test_a_word_that_only_a_text_has_is_found_and_explained(tmp_path: Path) -> None:
    new_index(tmp_path)
    with open_index(tmp_path / "pictures.lex", create=True) as index:
        index.add([Document("note", text="A toucan.")], MappingEncoder().encode_text(["green"]))
        index.commit()
    with served(tmp_path) as client:
        facts = client.get("/v1/index").json()
        assert (facts["has_text"], facts["legs"]) == (True, {"lexical": 6})
        answer = client.post("/v1/search", json={"text": "toucan", "explain": True}).json()
        query, (hit,) = answer["query"], answer["hits"]
        assert (query["legs"], query["fusion"]) == (["text"], "text")
        assert [unknown["word"] for unknown in query["unknown"]] == ["toucan"]
        assert (hit["id"], hit["lexical"]) == ("note", None)
        assert hit["text"] == {"score": hit["score"], "rank": 1}
        explained = hit["explanation"]
        own = {"word": "toucan", "score": hit["score"], "part": hit["score"]}
        assert (explained["text"], explained["matches"]) == ([own], [])
        weights = {"lexical": 0.25, "text": 0.75}
        asked = {"text": "green", "fusion": {"name": "weighted", "weights": weights}}
        hits = client.post("/v1/search", json=asked).json()["hits"]
        assert {hit["id"] for hit in hits} == {"lime", "note"}
        both = client.post("/v1/search", json={**asked, "text": "green toucan"}).json()["hits"]
        assert both[0]["id"] == "note"


def test_facts_health_and_the_page(client: TestClient) -> None:
    facts = client.get("/v1/index").json()
    assert (facts["count"], facts["model"], facts["legs"]) == (4, "fake", {"lexical": 6})
    assert (facts["fusion"], facts["writable"], facts["images"]) == ("lexical", True, True)
    assert facts["has_text"] is False
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    answer = client.get("/static/app.js")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-cache")
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"):
        assert client.get(path).status_code == 404


def test_figures_count_requests_stages_and_documents(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        client.post("/v1/search", json={"text": "red"})
        client.get("/v1/documents/apple")
        client.get("/v1/documents/no")
        figures = client.get("/metrics").text
    for line in (
        'lexvla_requests_total{method="POST",route="/v1/search",status="200"} 1.0',
        'lexvla_requests_total{method="GET",route="/v1/documents/{document_id}",status="404"} 1.0',
        'lexvla_stage_seconds_count{stage="encode"} 1.0',
        'lexvla_stage_seconds_count{stage="search"} 1.0',
        'lexvla_model_batch_items_count{call="encode_text"} 1.0',
        "lexvla_requests_inside 1.0",
        "lexvla_model_queue 0.0",
        "lexvla_index_documents 4.0",
    ):
        assert line in figures.splitlines()


def test_a_server_without_a_model_searches_by_plain_words(tmp_path: Path) -> None:
    from api_fakes import new_index
    from lexvla_search.api import Settings, create_app

    settings = Settings(new_index(tmp_path))
    with TestClient(create_app(settings, None), "http://localhost") as client:
        assert ids(client.post("/v1/search", json={"text": "blue"})) == ["flag"]
        for path, body in (
            ("search", {"image": base64_of(png(PICTURES["lime"]))}),
            ("encode", {"texts": ["red"]}),
        ):
            answer = client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 422, answer.text
            assert answer.json()["type"] == "urn:problem-type:lexvla:unsupported"
        assert client.get("/v1/index").json()["writable"] is False


def test_a_fusion_that_is_fitted_meanwhile_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FUSION_SECONDS", 0.0)
    asked = {"text": "red", "legs": ["lexical"]}
    with served(tmp_path) as client:
        hits = client.post("/v1/search", json=asked).json()["hits"]
        with open_index(tmp_path / "pictures.lex") as index:
            save_fusion(index, ReciprocalRank())
            assert client.get("/v1/index").json()["fusion"] == str(ReciprocalRank())
            (index.directory / "fusion.json").write_text("{")  # half a file changes nothing
            assert client.get("/v1/index").json()["fusion"] == str(ReciprocalRank())
        assert client.post("/v1/search", json=asked).json()["hits"] == hits  # a single leg


def test_a_fusion_by_its_settings(tmp_path: Path) -> None:
    encoder, rows = RowEncoder(), [{i: 1.0, i + 1: 0.5} for i in range(4)]
    with filled(tmp_path / "rows.lex", rows, encoder) as index:
        fusions = [
            Weighted({"lexical": 0.25, "dense": 2.0}, "raw", 3),
            Weighted({"codes": 1.0, "dense": 1.0}, "zscore"),
            ReciprocalRank(5, {"lexical": 1.0, "codes": 0.5}),
        ]
        settings = Settings(str(tmp_path / "rows.lex"))
        with TestClient(create_app(settings, encoder), "http://localhost") as client:
            for fusion in fusions:
                query = Query(text_of(rows[1]), fusion=fusion)
                expected = Searcher(encoder, index).search(query, explain=True)
                asked = {"text": query.text, "fusion": fusion.to_dict(), "explain": True}
                answer = client.post("/v1/search", json=asked).json()
                found = as_found(answer["hits"], tmp_path)
                assert found == [hit.to_dict() for hit in expected]
                assert answer["query"]["fusion"] == str(fusion)


def test_the_index_is_warm_before_the_first_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[EmbeddedIndex] = []
    monkeypatch.setattr(EmbeddedIndex, "warm_up", lambda index: warmed.append(index))
    with served(tmp_path):
        assert len(warmed) == 1
