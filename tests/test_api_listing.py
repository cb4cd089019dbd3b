"""Listings, similar items, facets, cursors and batches through the API and its client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from api_fakes import ids, png, served, text_of
from lexvla_indexer import open_index
from lexvla_search.api import Limits
from lexvla_search.client import ApiError, Client
from search_fakes import PICTURES, FakeEncoder

PRICES = [1, 5, 20, 50]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    limits = Limits(threads=2, k=10, queries=3)
    with served(tmp_path_factory.mktemp("api"), limits=limits) as made:
        lines = b"".join(
            b'{"id": "n%d", "text": "red", "metadata": {"price": %d, "tag": ["%s", "new"]}}\n'
            % (number, price, b"ab"[number % 2 : number % 2 + 1])
            for number, price in enumerate(PRICES)
        )
        headers = {"Content-Type": "application/x-ndjson"}
        answer = made.put("/v1/documents", content=lines, headers=headers)
        assert answer.json()["indexed"] == 4, answer.text
        yield made


def search(client: TestClient, **asked: Any) -> Any:
    return client.post("/v1/search", json=asked)


def test_like_an_item(client: TestClient) -> None:
    found = search(client, similar=["n1", {"id": "lime", "weight": -0.5}], k=3)
    assert ids(found) == ["n0", "n2", "n3"]
    assert found.json()["query"]["description"] == "like n1, lime x-0.5"
    told = search(client, similar=["n9"])
    assert told.status_code == 404
    assert told.json()["type"].endswith(":not-found")
    assert "'n9'" in told.json()["detail"]


def test_a_listing_with_facets_and_cursor(client: TestClient) -> None:
    ranges = [[None, 5], [5, 50], [50, None]]
    asked = {"filter": "tag = new", "sort": "-price", "k": 3}
    found = search(client, **asked, facets=["tag", {"field": "price", "ranges": ranges}])
    assert ids(found) == ["n3", "n2", "n1"]
    answer = found.json()
    assert answer["hits"][0]["score"] is None
    assert (answer["total"], answer["total_exact"], answer["query"]["fusion"]) == (4, True, None)
    assert answer["facets"] == {
        "tag": {
            "values": [
                {"value": "new", "count": 4},
                {"value": "a", "count": 2},
                {"value": "b", "count": 2},
            ],
            "other": 0,
            "missing": 0,
        },
        "price": {
            "ranges": [
                {"from": None, "to": 5, "count": 1},
                {"from": 5, "to": 50, "count": 2},
                {"from": 50, "to": None, "count": 1},
            ],
            "missing": 0,
        },
    }
    last = search(client, **asked, after=answer["next"])
    assert ids(last) == ["n0"]
    assert last.json()["hits"][0]["rank"] == 4
    assert last.json()["next"] is None
    other = search(client, **{**asked, "sort": "price"}, after=answer["next"])
    assert other.status_code == 422
    assert "is of another query" in other.json()["detail"]


def test_documents(client: TestClient) -> None:
    page = client.get("/v1/documents", params={"limit": 3}).json()
    assert [document["id"] for document in page["documents"]] == ["apple", "flag", "lime"]
    assert page["total"] == 8
    rest = client.get("/v1/documents", params={"limit": 3, "after": page["next"]}).json()
    assert [document["id"] for document in rest["documents"]] == ["n0", "n1", "n2"]
    params = {"filter": "price > 1", "sort": ["tag", "-price"]}
    page = client.get("/v1/documents", params=params).json()
    assert [document["id"] for document in page["documents"]] == ["n2", "n3", "n1"]
    assert page["documents"][0]["metadata"] == {"price": 20, "tag": ["a", "new"]}
    assert (page["total"], page["next"]) == (3, None)
    for params, named in (
        ({"limit": 0}, "limit"),
        ({"limit": 11}, "limit: must be at most 10"),
        ({"filter": "price >"}, "price >"),
        ({"sort": "prize"}, "there are label, price, tag"),
        ({"after": "x"}, "after"),
    ):
        told = client.get("/v1/documents", params=params)
        assert told.status_code == 422
        assert named in told.json()["detail"]


def test_a_parameter_that_is_misspelt_lists_nothing(client: TestClient) -> None:
    told = client.get("/v1/documents", params={"fliter": "price > 1"})
    assert (told.status_code, told.json()["detail"]) == (422, "fliter: there is no such parameter")


def test_a_batch(client: TestClient) -> None:
    queries = [
        {"text": "red", "filter": "price > 1", "k": 2},
        {"similar": ["n0"], "k": 1, "explain": True},
        {"image": text_of(png(PICTURES["snow"])), "k": 1},
    ]
    answers = client.post("/v1/search/batch", json={"queries": queries}).json()["answers"]
    for query, answer in zip(queries, answers, strict=True):
        alone = search(client, **query).json()
        for each in (alone, answer):
            del each["took_ms"], each["request_id"]
        assert answer == alone


@pytest.mark.parametrize(
    ("queries", "status", "named", "field"),
    [
        ([], 422, "queries", "queries"),
        ([{"text": "red"}] * 4, 422, "queries: must be at most 3 queries", "queries"),
        ([{"text": "red"}, {"k": 0}], 422, "queries.1.k", "queries.1.k"),
        ([{"text": "red"}, {"k": 11}], 422, "queries.1: k", "queries.1.k"),
        ([{"text": "red"}, {"ban": ["purple"]}], 422, "queries.1: 'purple'", "queries.1"),
        ([{"similar": ["n9"]}], 404, "queries.0: 'n9'", "queries.0"),
        ([{}, {"image": "%"}], 422, "queries.1: image", "queries.1.image"),
    ],
)
def test_an_error_of_a_batch_names_the_query(
    client: TestClient, queries: list, status: int, named: str, field: str
) -> None:
    told = client.post("/v1/search/batch", json={"queries": queries})
    assert told.status_code == status, told.text
    assert named in told.json()["detail"]
    assert told.json()["errors"][0]["field"] == field


def test_the_client(client: TestClient) -> None:
    made = Client("http://localhost", retries=0)
    made._http.close()
    made._http = client  # type: ignore[assignment]
    first, second = made.search_many(["red", {"similar": {"n0": 1, "lime": -1}, "k": 1}])
    assert first["total"] == 8
    assert [hit["id"] for hit in second["hits"]] == ["n1"]
    page = made.documents(filter="price > 1", sort=["-price"], limit=2)
    assert [document["id"] for document in page["documents"]] == ["n3", "n2"]
    rest = made.documents(filter="price > 1", sort=["-price"], limit=2, after=page["next"])
    assert [document["id"] for document in rest["documents"]] == ["n1"]
    made._failures = httpx2.HTTPError
    with pytest.raises(ApiError) as caught:
        made.search(similar={"n9": 1})
    assert caught.value.status == 404


def test_an_empty_index_has_empty_answers(tmp_path: Path) -> None:
    open_index(str(tmp_path / "pictures.lex"), create=True, vocabulary=FakeEncoder().vocabulary)
    with served(tmp_path, FakeEncoder()) as client:
        assert client.get("/v1/documents", params={"sort": "-year"}).json()["documents"] == []
        for asked in ({"facets": ["year"]}, {"text": "red", "facets": [{"field": "a"}]}):
            answer = search(client, **asked).json()
            assert (answer["hits"], answer["total"]) == ([], 0)
        bounded = search(client, text="red", sort="year", min_score=0.1, filter="year = 1").json()
        assert bounded["hits"] == []
