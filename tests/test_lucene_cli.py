"""The commands over a Lucene index, with a small fake model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lexvla_indexer import open_index
from lexvla_search import Query, Searcher, cli
from lexvla_search.encoded_query import encode_query
from search_fakes import PICTURES, FakeEncoder, build_index, save_pictures

pytestmark = pytest.mark.java

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def address(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a Lucene index that `lexvla index` made of four pictures."""
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
    place = f"lucene:{tmp_path / 'photos.lucene'}"
    assert cli.main(["index", str(save_pictures(tmp_path / "photos")), "--index", place]) == 0
    assert capsys.readouterr().out == "4 added; 4 in the index\n"
    return place


def run(capsys: Capture, *arguments: str) -> Any:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_search_and_explain(address: str, capsys: Capture, tmp_path: Path) -> None:
    with build_index(tmp_path / "embedded", tmp_path / "photos", FakeEncoder()) as other:
        expected = Searcher(FakeEncoder(), other).search(Query("red blue"))
    hits = run(capsys, "search", "red blue", "--index", address)["hits"]
    assert [hit["id"] for hit in hits] == [f"{hit.id}.png" for hit in expected]
    for hit, exact in zip(hits, expected, strict=True):
        assert hit["score"] == pytest.approx(exact.score, abs=0.005)
    hit = run(capsys, "explain", hits[0]["id"], "red blue", "--index", address)["hit"]
    assert (hit["rank"], hit["score"]) == (1, hits[0]["score"])  # Lucene's own
    total = sum(match["product"] for match in hit["explanation"]["matches"])
    assert total == pytest.approx(expected[0].score)
    with open_index(address) as index:
        query = encode_query(Query("red blue"), FakeEncoder()).encoding
        assert abs(total - hit["score"]) <= index.bound(query)[0]
        assert dict(zip(*index.search(query)[0], strict=True))[hit["id"]] == hit["score"]


def test_filters_deletion_and_maintenance(address: str, capsys: Capture, tmp_path: Path) -> None:
    hits = run(capsys, "search", "red", "--index", address, "--filter", "id != apple.png")["hits"]
    assert "apple.png" not in [hit["id"] for hit in hits]
    assert run(capsys, "delete", "apple.png", "--index", address)["documents"] == 3
    assert run(capsys, "compact", "--index", address)["deleted_rows"] == 0
    facts = run(capsys, "info", "--index", address)
    assert (facts["engine"], facts["documents"], facts["model"]) == ("lucene", 3, "fake")
    again = run(capsys, "index", str(tmp_path / "photos"), "--index", address)
    assert (again["added"], again["unchanged"]) == (1, len(PICTURES) - 1)
    (tmp_path / "photos" / "snow.png").unlink()
    pruned = run(capsys, "index", str(tmp_path / "photos"), "--index", address, "--prune")
    assert (pruned["pruned"], pruned["documents"]) == (1, 3)


def test_what_is_missing_is_one_line(capsys: Capture) -> None:
    assert cli.main(["search", "red", "--index", "lucene:nowhere"]) == 1
    assert "no index at lucene:nowhere; make one with" in capsys.readouterr().err
