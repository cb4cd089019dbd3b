"""The commands over an Elasticsearch index, with a small fake model, give the embedded hits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import elastic_fakes
from lexvla.errors import IndexCorruptError, IndexVersionError
from lexvla_indexer import open_index
from lexvla_search import Query, ReciprocalRank, Searcher, Weighted, cli, load_fusion, save_fusion
from lexvla_search.encoded_query import encode_query
from search_fakes import PICTURES, FakeEncoder, build_index, save_pictures

pytestmark = pytest.mark.elasticsearch

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def address(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return an Elasticsearch index that `lexvla index` made of four pictures."""
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
    with elastic_fakes.cleaned():
        place = elastic_fakes.address(tmp_path)
        assert cli.main(["index", str(save_pictures(tmp_path / "photos")), "--index", place]) == 0
        assert capsys.readouterr().out == "4 added; 4 in the index\n"
        yield place


def run(capsys: Capture, *arguments: str) -> Any:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_search_and_explain(address: str, capsys: Capture, tmp_path: Path) -> None:
    with build_index(tmp_path / "embedded", tmp_path / "photos", FakeEncoder()) as other:
        expected = Searcher(FakeEncoder(), other).search(Query("red blue"))
    hits = run(capsys, "search", "red blue", "--index", address, "--explain")["hits"]
    assert [hit["id"] for hit in hits] == [f"{hit.id}.png" for hit in expected]
    for hit, exact in zip(hits, expected, strict=True):
        assert hit["score"] == pytest.approx(exact.score, rel=2**-8)
    hit = run(capsys, "explain", hits[0]["id"], "red blue", "--index", address)["hit"]
    assert (hit["rank"], hit["score"]) == (1, hits[0]["score"])
    with open_index(address) as index:
        query = encode_query(Query("red blue"), FakeEncoder()).encoding
        (own,) = index.search(query)
        assert dict(zip(*own, strict=True))[hit["id"]] == pytest.approx(hit["score"], rel=1e-6)


def test_filters_deletion_and_maintenance(address: str, capsys: Capture, tmp_path: Path) -> None:
    hits = run(capsys, "search", "red", "--index", address, "--filter", "id != apple.png")["hits"]
    assert "apple.png" not in [hit["id"] for hit in hits]
    assert run(capsys, "delete", "apple.png", "--index", address)["documents"] == 3
    assert run(capsys, "compact", "--index", address)["segments"] == 1
    facts = run(capsys, "info", "--index", address)
    assert (facts["engine"], facts["documents"], facts["model"]) == ("elasticsearch", 3, "fake")
    again = run(capsys, "index", str(tmp_path / "photos"), "--index", address)
    assert (again["added"], again["unchanged"]) == (1, len(PICTURES) - 1)


def test_files_that_move_or_go(address: str, capsys: Capture, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "apple.png").rename(photos / "fruit.png")
    (photos / "snow.png").unlink()
    again = run(capsys, "index", str(photos), "--index", address, "--prune")
    assert [again[each] for each in ("added", "moved", "unchanged", "pruned")] == [0, 1, 2, 1]
    for path in photos.iterdir():
        path.unlink()
    assert cli.main(["index", str(photos), "--index", address, "--prune"]) == 1
    assert "pruned nothing: 3 of 3 documents are gone" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["relocate", "--root", str(tmp_path / "empty"), "--index", address]) == 1
    assert "has none of the files" in capsys.readouterr().err


def test_lost_vectors_are_found_and_made_again(
    address: str, capsys: Capture, tmp_path: Path
) -> None:
    before = run(capsys, "search", "red", "--index", address)["hits"]
    with open_index(address) as index:
        client, name = index._client, index._place.name
        source = client.get(index=name, id="apple.png")["_source"]
        del source["lex"]
        client.index(index=name, id="apple.png", document=source, refresh=True)
    assert cli.main(["info", "--verify", "--index", address]) == 1
    assert "document 'apple.png' has lost vectors" in capsys.readouterr().err
    again = run(capsys, "index", str(tmp_path / "photos"), "--index", address)
    assert (again["added"], again["unchanged"]) == (1, len(PICTURES) - 1)
    assert run(capsys, "info", "--verify", "--index", address)["damage"] == []
    assert run(capsys, "search", "red", "--index", address)["hits"] == before


def test_rebuilding(address: str, capsys: Capture, tmp_path: Path) -> None:
    first = run(capsys, "info", "--index", address)["index"]
    (tmp_path / "photos" / "snow.png").unlink()
    again = run(capsys, "index", str(tmp_path / "photos"), "--index", address, "--rebuild")
    assert (again["added"], again["documents"]) == (3, 3)
    facts = run(capsys, "info", "--index", address)
    assert (facts["documents"], facts["index"] != first) == (3, True)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    strict = ["index", str(tmp_path / "photos"), "--index", address, "--rebuild", "--strict"]
    assert cli.main(strict) == 1
    capsys.readouterr()
    assert run(capsys, "info", "--index", address)["index"] == facts["index"]  # the old one stays
    assert cli.main(["index", str(tmp_path / "photos"), "--index", "i.lex", "--rebuild"]) == 1
    assert "only an index on a server is rebuilt" in capsys.readouterr().err


def test_a_fusion_is_kept_with_the_index(address: str) -> None:
    with open_index(address) as index:
        assert load_fusion(index) is None
        assert Searcher(FakeEncoder(), index).fusion == Weighted()
        save_fusion(index, ReciprocalRank(constant=7), {"measure": "R@1"})
    with open_index(address) as index:
        assert load_fusion(index) == ReciprocalRank(constant=7)
        save_fusion(index, None)
        assert load_fusion(index) is None
        save_fusion(index, ReciprocalRank(constant=7), {"measure": "R@1"})
        assert Searcher(FakeEncoder(), index).fusion == ReciprocalRank(constant=7)
        assert index.read_note("fusion")["facts"] == {"measure": "R@1"}
        index.write_note("fusion", {"format_version": 2, "fusion": {}})
        with pytest.raises(IndexVersionError, match="fusion format 2"):
            load_fusion(index)
        index.write_note("fusion", {"format_version": 1, "fusion": {"kind": "?"}})
        with pytest.raises(IndexCorruptError, match="no readable fusion"):
            load_fusion(index)


def test_the_query_that_is_sent(address: str, capsys: Capture, tmp_path: Path) -> None:
    shown = run(capsys, "search", "red", "--index", address, "--show-query", "-k", "3")
    with open_index(address) as index:
        body = shown["requests"]["lexical"]
        assert (
            body == index.requests(encode_query(Query("red"), FakeEncoder()).encoding, 3)["lexical"]
        )
        answer = index._client.search(index=index._place.name, body=body)
    hits = run(capsys, "search", "red", "--index", address, "-k", "3")["hits"]
    assert [hit["_id"] for hit in answer["hits"]["hits"]] == [hit["id"] for hit in hits]
    assert cli.main(["search", "red", "--index", address, "--show-query"]) == 0
    assert '"query_vector": {\n        "\u2581red": 1.0' in capsys.readouterr().out
    with build_index(tmp_path / "embedded", tmp_path / "photos", FakeEncoder()):
        pass
    where = str(tmp_path / "embedded")
    for more in ([], ["--ban", "blue"]):
        assert cli.main(["search", "red", "--index", where, "--show-query", *more]) == 1
        assert "there are no requests to show" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["-k", "2", "--offset", "1"],
        ["--ban", "blue"],
        ["--require", "blue"],
        ["--require", "blue", "--ban", "black", "--filter", "not id = apple.png"],
        ["--min-score", "0.6"],
        ["--weights", "lexical=0.5", "--min-score", "0.3"],
        ["--boost", "blue=2", "--filter", "id > b"],
    ],
)
def test_what_is_shown_gives_the_hits_when_it_is_pasted(
    address: str, capsys: Capture, options: list[str]
) -> None:
    asked = ["search", "red yellow", "--index", address, *options]
    hits = [(hit["id"], hit["score"]) for hit in run(capsys, *asked)["hits"]]
    everything = ["search", "red yellow", "--index", address]
    assert hits != [(hit["id"], hit["score"]) for hit in run(capsys, *everything)["hits"]]
    for more in ([], ["--named"]):
        shown = run(capsys, *asked, "--show-query", *more)
        with open_index(address) as index:
            answer = index._client.search(
                index=index._place.name, body=shown["requests"]["lexical"]
            )
        found = [(hit["_id"], hit["_score"]) for hit in answer["hits"]["hits"]]
        if "--weights" in options:
            assert shown["steps"] == ["The client multiplies each score by 0.5."]
            found = [(name, score * 0.5) for name, score in found]
        else:
            assert shown["steps"] == []
        assert [name for name, _ in found] == [name for name, _ in hits]
        assert [score for _, score in found] == pytest.approx([s for _, s in hits], rel=1e-6)
    clauses = str(shown["requests"])
    assert "'_name': '\u2581red'" in clauses
    assert cli.main([*asked, "--named"]) == 2
    assert "--named goes with --show-query" in capsys.readouterr().err


def test_what_the_client_adds_is_told(address: str, capsys: Capture) -> None:
    asked = ["search", "red", "--index", address, "--fusion", "minmax", "--min-score", "0.1"]
    assert cli.main([*asked, "--show-query", "--named", "-k", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# The client merges these lists: weighted (minmax scores).\n# It asks")
    assert "# It leaves out scores below 0.1.\n# It shows hits 1 to 5.\n# lexical\nGET" in text
    assert "/_search?include_named_queries_score=true\n{" in text
    assert '"size": 100' in text
    shown = run(capsys, "search", "zzz", "--index", address, "--show-query")
    assert shown["requests"] == {}
    assert shown["steps"] == ["The index is not asked: no word of the query is known."]


def test_what_is_missing_is_one_line(capsys: Capture) -> None:
    place = f"elasticsearch+{elastic_fakes.url()}/lexvla-test-nowhere"
    assert cli.main(["search", "red", "--index", place]) == 1
    assert f"no index at {place}; make one with" in capsys.readouterr().err
