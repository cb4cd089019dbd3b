"""A user's own Elasticsearch index through commands and server: searched, and never written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from starlette.testclient import TestClient

import elastic_fakes
from api_fakes import URL, ids
from attached_fakes import made, products
from hybrid_fakes import RowEncoder
from indexer_fakes import random_rows
from lexvla_indexer import open_index
from lexvla_search import Query, Searcher, cli
from lexvla_search.api import Settings, create_app

pytestmark = pytest.mark.elasticsearch

ROWS = random_rows(np.random.default_rng(8), 20)
PRODUCTS = products(22)
REFUSED = "is an index of your own, which is attached: LexVLA only searches it"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with elastic_fakes.cleaned():
        place = elastic_fakes.address(tmp_path_factory.mktemp("own"))
        made(place, ROWS, PRODUCTS)
        yield place


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert cli.main([*arguments, "--no-model", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_search_explain_and_info(address, capsys):
    asked = ["red", "--term", "word0=1", "--text-fields", "title^2,description", "--index", address]
    found = run(capsys, "search", *asked, "--filter", "sale = true", "--facet", "brand")
    with open_index(address) as index:
        query = Query(
            "red", terms={"word0": 1.0}, text_fields="title^2,description", filter="sale = true"
        )
        expected = Searcher(None, index).search(query)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
    assert [hit["score"] for hit in found["hits"]] == [hit.score for hit in expected]
    assert found["query"]["text_fields"] == {"title": 2.0, "description": 1.0}
    assert found["total"] == sum(count["count"] for count in found["facets"]["brand"]["values"])
    first = expected[0].id
    hit = run(capsys, "explain", first, *asked, "--filter", "sale = true")["hit"]
    assert hit["score"] == pytest.approx(expected[0].score)
    assert sum(part["part"] for part in hit["explanation"]["parts"]) == pytest.approx(hit["score"])
    listed = run(capsys, "search", "--index", address, "--sort", "price", "-k", "3")
    assert [hit["id"] for hit in listed["hits"]] == [each["id"] for each in PRODUCTS[:3]]
    again = run(
        capsys, "search", "--index", address, "--sort", "price", "-k", "2",
        "--after", listed["next"],
    )  # fmt: skip
    assert [hit["id"] for hit in again["hits"]] == [each["id"] for each in PRODUCTS[3:5]]
    shown = run(capsys, "search", *asked, "--show-query")
    assert set(shown["requests"]) == {"lexical", "text"}
    assert cli.main(["info", "--verify", "--index", address]) == 0
    assert "documents_filled       20" in capsys.readouterr().out
    assert cli.main(["search", *asked, "--no-model", "--show-query", "--legs", "text"]) == 0
    start = "# It puts hits of equal score in the order of ids.\n# text\nGET "
    out = capsys.readouterr().out
    assert out.startswith(start)
    assert "/_search?search_type=dfs_query_then_fetch\n{" in out


def test_options_that_cannot_be(address, capsys, tmp_path):
    assert cli.main(["search", "red", "--no-model", "--text-fields", "t^x", "--index", "i"]) == 2
    assert "its weight must be a number" in capsys.readouterr().err
    with open_index(tmp_path / "i.lex", create=True):
        pass
    own = ["search", "red", "--no-model", "--text-fields", "title", "--index"]
    assert cli.main([*own, str(tmp_path / "i.lex")]) == 1
    assert "text fields are chosen in an attached index only" in capsys.readouterr().err
    assert cli.main(["search", "red", "--no-model", "--text-fields", "nope", "--index", address])
    assert "no such field to look for words" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "FOLDER"],
        ["index", "FOLDER", "--rebuild"],
        ["index", "FOLDER", "--prune"],
        ["delete", "p01"],
        ["compact"],
        ["rollback"],
    ],
)
def test_commands_that_write_are_refused(address, capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: RowEncoder())
    given = [str(tmp_path) if each == "FOLDER" else each for each in arguments]
    assert cli.main([*given, "--index", address]) == 1
    assert REFUSED in capsys.readouterr().err


def test_it_is_served(address, tmp_path: Path):
    encoder = RowEncoder(("lexical", "dense"))
    with TestClient(create_app(Settings(address), encoder), URL) as client:
        facts = client.get("/v1/index").json()
        assert (facts["count"], facts["writable"]) == (22, False)
        fields = {field["name"]: field for field in facts["fields"]}
        assert fields["price"] == {
            "name": "price", "kind": "number", "distinct": 22, "low": 0, "high": 5.25,
        }  # fmt: skip
        assert fields["brand"]["kind"] == "string"
        asked = {
            "text": "word0:1 word4:0.5",
            "filter": "price < 4",
            "facets": ["brand"],
            "text_fields": {"title": 2.0},
            "explain": True,
        }
        answer = client.post("/v1/search", json=asked)
        with open_index(address) as index:
            query = Query(asked["text"], filter=asked["filter"], text_fields={"title": 2})
            expected = Searcher(encoder, index).search(query)
        assert ids(answer) == [hit.id for hit in expected]
        for hit in answer.json()["hits"]:
            parts = sum(part["part"] for part in hit["explanation"]["parts"])
            assert parts == pytest.approx(hit["score"])
        name = expected[0].id
        explained = client.post("/v1/explain", json={"text": "word0:1", "id": name})
        assert explained.json()["hit"]["id"] == name
        similar = client.post("/v1/search", json={"similar": [name], "k": 3})
        assert name not in ids(similar)
        document = client.get(f"/v1/documents/{name}").json()
        assert document["metadata"]["brand"].startswith("brand")
        words = client.get(f"/v1/documents/{name}/words").json()["words"]
        assert len(words) == 4
        page = client.get("/v1/documents", params={"sort": "-price", "limit": 2}).json()
        assert [d["id"] for d in page["documents"]] == [p["id"] for p in PRODUCTS[:-3:-1]]
        for bad, said in (
            ({"filter": "description = red"}, "has no sub-field of type keyword"),
            ({"filter": "price = '2'".replace("'", '"')}, "compare it with a number"),
            ({"text": "word0:1", "text_fields": {"price": 1}}, "words are looked for in text"),
        ):
            refused = client.post("/v1/search", json=bad)
            assert refused.status_code == 422
            assert said in refused.json()["detail"]
        line = json.dumps({"id": "new", "text": "word0:1"}) + "\n"
        kinds = {"Content-Type": "application/x-ndjson"}
        for written in (
            client.delete(f"/v1/documents/{name}"),
            client.patch(f"/v1/documents/{name}", json={"text": "x"}),
            client.put("/v1/documents", content=line, headers=kinds),
        ):
            assert written.status_code == 422
            assert REFUSED in written.json()["detail"]
        assert client.get("/v1/index").json()["count"] == 22
