"""The commands over a real index with a small fake model."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lexvla.data.demo_corpus import DemoItem
from lexvla_search import cli
from search_fakes import PICTURES, FakeEncoder, MappingEncoder, save_pictures

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    encoder = FakeEncoder()
    use(monkeypatch, encoder)
    return encoder


def use(monkeypatch: pytest.MonkeyPatch, encoder: FakeEncoder) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)


@pytest.fixture
def address(tmp_path: Path, capsys: Capture) -> str:
    place = str(tmp_path / "photos.lex")
    assert cli.main(["index", str(save_pictures(tmp_path / "photos")), "--index", place]) == 0
    capsys.readouterr()
    return place


def run(capsys: Capture, *arguments: str) -> Any:
    assert cli.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_index_and_again(tmp_path: Path, capsys: Capture) -> None:
    folder, place = save_pictures(tmp_path / "photos"), str(tmp_path / "new.lex")
    assert run(capsys, "index", str(folder), "--index", place) == {
        "index": place,
        "added": 4,
        "replaced": 0,
        "unchanged": 0,
        "updated": 0,
        "moved": 0,
        "pruned": 0,
        "rejected": 0,
        "ignored": 0,
        "excluded": 0,
        "wordless": 0,
        "texts cut": 0,
        "with losses": 0,
        "rejects_file": None,
        "ignored_by_suffix": {},
        "excluded_by_pattern": {},
        "absorbed": [],
        "moved_from": None,
        "losses": [],
        "documents": 4,
    }
    again = run(capsys, "index", str(folder), "--index", place)
    assert (again["added"], again["unchanged"], again["documents"]) == (0, 4, 4)
    anew = run(capsys, "index", str(folder), "--index", place, "--no-resume", "--batch-size", "1")
    assert (anew["added"], anew["documents"]) == (4, 4)
    assert cli.main(["index", str(folder), "--index", place]) == 0
    assert capsys.readouterr().out == "0 added, 4 unchanged; 4 in the index\n"


def test_index_goes_on_past_bad_items(tmp_path: Path, capsys: Capture) -> None:
    folder, place = save_pictures(tmp_path / "photos"), str(tmp_path / "new.lex")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("hello")
    assert cli.main(["index", str(folder), "--index", place]) == 0
    out, err = capsys.readouterr()
    assert out == "4 added, 1 rejected, 1 ignored (1 .txt); 4 in the index\n"
    assert "broken.png" in err
    rejects_file = Path(place) / "rejected.jsonl"
    assert err.rstrip().endswith(f"are listed in {rejects_file}")
    assert len(rejects_file.read_text().splitlines()) == 1


def test_index_of_nothing_fails(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    place = str(tmp_path / "new.lex")
    assert cli.main(["index", str(tmp_path / "empty"), "--index", place]) == 1
    assert "could be added" in capsys.readouterr().err
    assert cli.main(["index", str(tmp_path / "absent"), "--index", str(tmp_path / "b.lex")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "b.lex").exists()
    # An index in which nothing was ever put can be searched all the same.
    assert run_quietly(capsys, "search", "red", "--index", place) == ("", "lexvla: no hits\n")


def run_quietly(capsys: Capture, *arguments: str) -> tuple[str, str]:
    assert cli.main(list(arguments)) == 0
    return tuple(capsys.readouterr())


def test_search(address: str, capsys: Capture) -> None:
    data = run(capsys, "search", "red", "--index", address)
    assert data["query"] == {
        "description": '"red"',
        "text": "red",
        "image": None,
        "region": None,
        "terms": {},
        "boost": {},
        "ban": [],
        "require": [],
        "filter": None,
        "similar": {},
        "sort": [],
        "facets": [],
        "after": None,
        "legs": ["lexical"],
        "fusion": "lexical",
        "k": 10,
        "group_copies": False,
        "text_fields": None,
        "offset": 0,
        "min_score": None,
        "min_relevance": None,
        "words": [{"word": "red", "weight": 1.0}],
        "unknown": [],
        "unread": "",
    }
    assert [hit["id"] for hit in data["hits"]] == ["apple.png", "flag.png"]
    assert data["hits"][0]["explanation"] is None
    explained = run(capsys, "search", "red", "--index", address, "-k", "1", "--explain")
    (hit,) = explained["hits"]
    (match,) = hit["explanation"]["matches"]
    assert (match["word"], match["patch"]) == ("red", 6)
    assert match["product"] == pytest.approx(hit["score"])


def test_search_by_image(address: str, tmp_path: Path, capsys: Capture) -> None:
    for name in PICTURES:
        image = str(tmp_path / "photos" / f"{name}.png")
        data = run(capsys, "search", "--image", image, "--index", address, "-k", "1")
        assert [hit["id"] for hit in data["hits"]] == [f"{name}.png"]
    both = run(capsys, "search", "green", "--image", image, "--index", address)
    assert {hit["id"] for hit in both["hits"]} == {"lime.png", "snow.png"}


def test_search_for_people(address: str, capsys: Capture) -> None:
    assert cli.main(["search", "red", "--index", address]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["1", "0.707"]
    assert first.endswith("apple.png  red 0.707")
    assert first.index("red 0.707") == second.index("red ")
    assert cli.main(["search", "red", "--index", address, "--explain", "-k", "1"]) == 0
    out = capsys.readouterr().out
    assert "1. " in out
    assert "product" in out


def test_a_long_wild_text_stays_on_its_line(tmp_path: Path, capsys: Capture) -> None:
    line = {"id": "wild", "text": "red\n\x1b[31m alert " + "red " * 50}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    place = str(tmp_path / "wild.lex")
    assert cli.main(["index", str(tmp_path / "items.jsonl"), "--index", place]) == 0
    capsys.readouterr()
    assert cli.main(["search", "red", "--index", place]) == 0
    out = capsys.readouterr().out
    shown = "red [31m alert red red red red red \u2026"
    assert out == f"1  0.955  {shown}  wild  red 0.500  [text: red] 0.455\n"
    hit = run(capsys, "search", "red", "--index", place)["hits"][0]
    assert hit["document"]["text"] == line["text"]


@pytest.mark.parametrize("options", [[], ["--no-model"], ["--fusion", "rrf"], ["--legs", "dense"]])
def test_search_without_known_words(address: str, options: list[str], capsys: Capture) -> None:
    assert cli.main(["search", "a zebra", "--index", address, *options]) == 0
    assert capsys.readouterr() == ("", "lexvla: no such word: zebra\nlexvla: no hits\n")
    data = run(capsys, "search", "gren", "--index", address, *options)
    assert (data["hits"], data["query"]["words"], data["query"]["legs"]) == ([], [], [])
    assert data["query"]["unknown"] == [{"word": "gren", "nearest": ["green"]}]


def test_an_unknown_word_is_named_beside_the_hits_of_the_others(
    address: str, capsys: Capture
) -> None:
    assert cli.main(["search", "Bleu red", "--index", address]) == 0
    out, err = capsys.readouterr()
    assert err == "lexvla: no such word: Bleu (did you mean blue?)\n"
    assert cli.main(["search", "red", "--index", address]) == 0
    assert capsys.readouterr() == (out, "")
    assert cli.main(["explain", "flag.png", "Bleu", "--index", address]) == 0
    out, explained_err = capsys.readouterr()
    assert explained_err == err
    assert "score 0.0000  not among the best" in out


def test_search_without_hits(address: str, capsys: Capture) -> None:
    assert run(capsys, "search", "yellow", "--index", address)["hits"] == []
    assert cli.main(["search", "yellow", "--index", address]) == 0
    assert capsys.readouterr() == ("", "lexvla: no hits\n")


def test_filter(tmp_path: Path, capsys: Capture) -> None:
    rows = [("old", 1999, ["cat"]), ("new", 2021, ["cat", "big one"]), ("dog", 2022, ["dog"])]
    lines = [
        json.dumps({"id": name, "text": "red", "metadata": {"year": year, "tag": tags}})
        for name, year, tags in rows
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    place = str(tmp_path / "items.lex")
    run(capsys, "index", str(tmp_path / "items.jsonl"), "--index", place)

    def ids(wanted: str) -> list[str]:
        data = run(capsys, "search", "red", "--index", place, "--filter", wanted)
        assert data["query"]["filter"] == wanted
        return [hit["id"] for hit in data["hits"]]

    assert ids("year>=2020 and tag=cat") == ["new"]
    assert ids('tag in ("big one", dog)') == ["dog", "new"]
    assert ids('year = "2021"') == []
    hit = run(capsys, "explain", "old", "red", "--index", place, "--filter", "year>2000")["hit"]
    assert hit["rank"] is None
    for command in ("search", "explain old"):
        assert cli.main([*command.split(), "red", "--index", place, "--filter", "year >> 2"]) == 1
        expected = "filter 'year >> 2', column 7: expected a value, found '>'"
        assert capsys.readouterr() == ("", f"lexvla: error: {expected}\n")


def test_bad_query_image(address: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    for name in ("bad.png", "absent.png", "photos"):
        image = str(tmp_path / name)
        assert cli.main(["search", "--image", image, "--index", address]) == 1
        assert name in capsys.readouterr().err


def test_another_model(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use(monkeypatch, FakeEncoder(name="other"))
    for command in (["search", "red"], ["index", str(tmp_path / "photos")], ["explain", "a", "b"]):
        assert cli.main([*command, "--index", address]) == 1
        err = capsys.readouterr().err
        assert "'fake'" in err
        assert "'other'" in err


def test_explain(address: str, capsys: Capture) -> None:
    data = run(capsys, "explain", "apple.png", "red", "--index", address)
    assert data["heatmap"] is None
    assert data["hit"]["rank"] == 1
    assert data["hit"]["explanation"]["score"] == data["hit"]["score"]
    assert cli.main(["explain", "apple.png", "red", "--index", address]) == 0
    assert "rank 1" in capsys.readouterr().out
    assert cli.main(["explain", "snow.png", "red", "--index", address]) == 0
    out = capsys.readouterr().out
    assert "not among the best" in out
    assert "no word in common" in out
    assert cli.main(["explain", "ghost", "red", "--index", address]) == 1
    assert capsys.readouterr().err == "lexvla: error: 'ghost': the index has no such id\n"


@pytest.mark.parametrize("encoder", [FakeEncoder(), MappingEncoder()])
@pytest.mark.parametrize("word", [[], ["--word", "red"]])
def test_explain_draws(
    encoder: FakeEncoder,
    word: list[str],
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    use(monkeypatch, encoder)
    target = tmp_path / "out.png"
    arguments = ["explain", "apple.png", "red", "--index", address, "--heatmap", str(target)]
    assert run(capsys, *arguments, *word)["heatmap"] == str(target)
    picture = np.asarray(Image.open(target), dtype=float)[:384]
    glow = picture[..., 0].reshape(4, 96, 4, 96).mean(axis=(1, 3))
    assert np.unravel_index(glow.argmax(), (4, 4)) == (1, 2)


def test_explain_cannot_draw(address: str, tmp_path: Path, capsys: Capture) -> None:
    draw = ["--index", address, "--heatmap", str(tmp_path / "out.png")]
    for arguments, complaint in (
        (["snow.png", "red", *draw], "no matched word has a place"),
        (["apple.png", "red", *draw, "--word", "zebra"], "the vocabulary has no such word"),
        (["apple.png", "red", *draw[:3], str(tmp_path / "no/x.png")], "x.png"),
    ):
        assert cli.main(["explain", *arguments]) == 1
        assert complaint in capsys.readouterr().err
    (tmp_path / "photos" / "apple.png").unlink()
    assert cli.main(["explain", "apple.png", "red", *draw]) == 1
    assert "apple.png" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_delete_compact_and_info(address: str, capsys: Capture) -> None:
    data = run(capsys, "delete", "apple.png", "apple.png", "--index", address)
    assert data == {"deleted": 1, "missing": [], "documents": 3}
    assert run(capsys, "search", "red", "--index", address)["hits"][0]["id"] == "flag.png"
    assert cli.main(["delete", "ghost", "snow.png", "--index", address]) == 1
    out, err = capsys.readouterr()
    assert out == "1 deleted; 2 in the index\n"
    assert err == "lexvla: error: 'ghost': the index has no such id\n"
    compacted = run(capsys, "compact", "--index", address)
    assert (compacted["documents"], compacted["deleted_rows"]) == (2, 0)
    facts = run(capsys, "info", "--index", address)
    assert facts["model"] == "fake"
    assert facts["documents"] == 2
    assert facts["quantization"]["lexical"]["overlap@10"] == 1.0
    assert cli.main(["info", "--index", address]) == 0
    printed = capsys.readouterr().out
    assert "model" in printed
    assert "quantization.lexical.max_error" in printed


def test_info_shows_the_folders(address: str, capsys: Capture, tmp_path: Path) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    shutil.copytree(photos, other)
    data = run(capsys, "index", str(other), "--index", address)
    assert (data["added"], data["replaced"], data["documents"]) == (4, 0, 8)
    assert run(capsys, "info", "--index", address)["sources"] == [
        {"path": str(other), "ids_start_with": "other/"},
        {"path": str(photos), "ids_start_with": ""},
    ]
    assert cli.main(["info", "--index", address]) == 0
    assert f" {other} (ids start with other/), {photos}\n" in capsys.readouterr().out
    assert cli.main(["index", str(tmp_path), "--index", address, "--exclude", "i*"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("0 added, 8 updated")
    assert f"lexvla: {other} was indexed by itself, and is a part of this folder now\n" in err


def test_info_verify_names_what_is_damaged(address: str, capsys: Capture) -> None:
    assert run(capsys, "info", "--verify", "--index", address)["damage"] == []
    (file,) = Path(address).glob("segments/*/lexical.posting.impact.npy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)
    assert cli.main(["info", "--verify", "--index", address]) == 1
    out, err = capsys.readouterr()
    assert out.split() == ["damage", "1"]
    assert err.startswith(f"lexvla: error: {file}: damaged")


class TestDemo:
    @pytest.fixture(autouse=True)
    def corpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put four pictures in the place of the corpus, and colours in that of the queries."""
        folder = save_pictures(tmp_path / "corpus")
        items = [
            DemoItem(name, f"a {name}", (), group, "s", (folder / f"{name}.png").read_bytes())
            for name, group in zip(PICTURES, ("g", "g", "photographs", "photographs"), strict=True)
        ]

        def extract(target: Path) -> Path:
            save_pictures(target / "images")
            lines = []
            for item in items:
                line = {"id": item.id, "image": f"images/{item.id}.png"}
                lines.append(json.dumps({**line, "metadata": {"label": item.label}}))
            (target / "manifest.jsonl").write_text("\n".join(lines))
            return target / "manifest.jsonl"

        monkeypatch.setattr("lexvla_search.cli.demo.load_demo_corpus", lambda: items)
        monkeypatch.setattr("lexvla_search.cli.demo.extract_demo_corpus", extract)
        monkeypatch.setattr("lexvla_search.cli.demo.QUERIES", ("red", "blue red"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("sys.argv", ["lexvla"])

    def test_it_builds_once(self, tmp_path: Path, capsys: Capture) -> None:
        assert cli.main(["demo"]) == 0
        out, err = capsys.readouterr()
        home = tmp_path / "cache" / "lexvla" / "demo.lex"
        assert "indexing 2 emoji and 2 photographs into" in err
        assert out.startswith("red\n  1  0.707  a apple  apple  red 0.707\n")
        assert "lexvla explain apple red --index" in out
        assert f"The index is in {home}" in out
        assert cli.main(["demo"]) == 0
        assert capsys.readouterr() == (out, "")

    def test_the_command_that_it_names_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        assert cli.main(["demo"]) == 0
        out = capsys.readouterr().out
        monkeypatch.chdir(tmp_path)
        for line in out.splitlines():
            if line.startswith("  lexvla explain"):
                assert cli.main(shlex.split(line)[1:]) == 0
        assert (tmp_path / "why.png").is_file()

    def test_it_names_the_command_as_it_was_called(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        monkeypatch.setenv("PATH", "")
        for argument, called in (
            ("my venv/lexvla", "'my venv/lexvla'"),
            ("/x/lexvla_search/__main__.py", f"{shlex.quote(sys.executable)} -m lexvla_search"),
        ):
            monkeypatch.setattr("sys.argv", [argument])
            assert cli.main(["demo"]) == 0
            assert f"\n  {called} explain apple red" in capsys.readouterr().out

    def test_json(self, tmp_path: Path, capsys: Capture) -> None:
        place = str(tmp_path / "here.lex")
        assert cli.main(["demo", "--index", place, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["index"] == place
        assert [r["query"]["text"] for r in data["results"]] == ["red", "blue red"]
        assert data["results"][0]["hits"][0]["explanation"]["matches"][0]["word"] == "red"

    def test_what_was_cut_short_is_finished(self, tmp_path: Path, capsys: Capture) -> None:
        assert cli.main(["demo"]) == 0
        home = str(tmp_path / "cache" / "lexvla" / "demo.lex")
        assert cli.main(["delete", "lime", "--index", home]) == 0
        assert cli.main(["demo"]) == 0
        capsys.readouterr()
        assert run(capsys, "info", "--index", home)["documents"] == 4

    def test_documents_of_ones_own_may_be_put_into_it(self, tmp_path: Path) -> None:
        assert cli.main(["demo"]) == 0
        home = str(tmp_path / "cache" / "lexvla" / "demo.lex")
        (tmp_path / "own.jsonl").write_text('{"id": "own", "text": "red"}\n')
        assert cli.main(["index", str(tmp_path / "own.jsonl"), "--index", home]) == 0
        assert cli.main(["demo"]) == 0

    def test_another_model_builds_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        assert cli.main(["demo"]) == 0
        assert cli.main(["demo", "--index", str(tmp_path / "here.lex")]) == 0
        capsys.readouterr()

        # A model's name holds the hash of its weights: a retrained one is another.
        use(monkeypatch, FakeEncoder(name="new"))
        assert cli.main(["demo"]) == 0
        assert "building the demo's index anew" in capsys.readouterr().err
        # But what the user named is the user's.
        assert cli.main(["demo", "--index", str(tmp_path / "here.lex")]) == 1
        assert "'new'" in capsys.readouterr().err

    def test_an_index_of_an_older_format_is_built_anew(
        self, tmp_path: Path, capsys: Capture
    ) -> None:
        assert cli.main(["demo"]) == 0
        db = sqlite3.connect(tmp_path / "cache" / "lexvla" / "demo.lex" / "manifest.sqlite")
        with db:
            db.execute("UPDATE meta SET value = 1 WHERE key = 'format_version'")
        db.close()
        capsys.readouterr()
        assert cli.main(["demo"]) == 0
        assert "building the demo's index anew" in capsys.readouterr().err

    def test_it_leaves_other_indexes_alone(self, address: str, capsys: Capture) -> None:
        assert cli.main(["demo", "--index", address]) == 2
        assert "is not an index of the demo" in capsys.readouterr().err
        assert run(capsys, "info", "--index", address)["documents"] == 4


def test_model_and_device_are_passed_on(
    address: str, monkeypatch: pytest.MonkeyPatch, model: FakeEncoder
) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "lexvla_search.cli.arguments.load_model", lambda *asked: seen.append(asked) or model
    )
    assert cli.main(["search", "red", "--index", address, "--device", "cuda:1"]) == 0
    assert cli.main(["search", "red", "--index", address, "--model", "mine"]) == 0
    assert seen == [(None, "cuda:1", False), ("mine", "cpu", False)]


def test_indexing_asks_the_model_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: FakeEncoder
) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "lexvla_search.cli.arguments.load_model", lambda *asked: seen.append(asked) or model
    )
    folder = save_pictures(tmp_path / "photos")
    assert cli.main(["index", str(folder), "--index", str(tmp_path / "new.lex")]) == 0
    assert seen == [(None, "cpu", True)]
