"""What `lexvla search`, `explain` and `fit-fusion` make of their arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybrid_fakes import RowEncoder, filled
from lexvla_search import Query, Searcher, Weighted, cli, load_fusion
from search_fakes import FakeEncoder, build_index
from test_search_fitting import QRELS, QUERIES, ROWS

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, FakeEncoder())
    build_index(tmp_path / "photos.lex", tmp_path / "photos", FakeEncoder()).close()
    return str(tmp_path / "photos.lex")


@pytest.fixture
def hybrid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    encoder = RowEncoder(("lexical", "dense"))
    use(monkeypatch, encoder)
    filled(tmp_path / "rows.lex", ROWS, encoder).close()
    return str(tmp_path / "rows.lex")


def use(monkeypatch: pytest.MonkeyPatch, encoder: Any) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)


def run(capsys: Capture, *arguments: str) -> Any:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def ids(capsys: Capture, address: str, *arguments: str) -> list[str]:
    return [h["id"] for h in run(capsys, "search", "--index", address, *arguments)["hits"]]


def test_words(address: str, capsys: Capture) -> None:
    assert ids(capsys, address, "red") == ["apple", "flag"]
    assert ids(capsys, address, "--term", "red=1", "--term", "green=1") == ["apple", "flag", "lime"]
    assert ids(capsys, address, "red green", "--boost", "green=3") == ["lime", "apple", "flag"]
    assert ids(capsys, address, "red green", "--ban", "blue") == ["apple", "lime"]
    assert ids(capsys, address, "red green", "--require", "green") == ["lime"]
    assert ids(capsys, address, "red", "-k", "1", "--offset", "1") == ["flag"]
    assert ids(capsys, address, "red", "--min-score", "0.7") == ["apple", "flag"]
    assert ids(capsys, address, "red", "--min-score", "0.8") == []
    assert ids(capsys, address, "red", "--legs", "lexical", "--fusion", "lexical") == [
        "apple",
        "flag",
    ]


def test_like_items(address: str, capsys: Capture) -> None:
    assert ids(capsys, address, "--similar", "apple", "-k", "1") == ["flag"]
    assert ids(capsys, address, "--similar", "apple=2", "--similar", "lime=-0.5", "-k", "1") == [
        "flag"
    ]
    assert cli.main(["search", "--similar", "pear", "--index", address]) == 1
    assert "'pear': the index has no such id" in capsys.readouterr().err


def test_a_listing(address: str, capsys: Capture) -> None:
    assert ids(capsys, address) == ["apple", "flag", "lime", "snow"]
    assert ids(capsys, address, "--sort=-label", "--filter", "id != lime") == [
        *("snow", "flag", "apple")
    ]
    first = run(capsys, "search", "--index", address, "-k", "3", "--facet", "label:0")
    assert (first["total"], first["total_exact"]) == (4, True)
    assert first["facets"]["label"]["ranges"][0] == {"from": None, "to": 0, "count": 0}
    assert ids(capsys, address, "-k", "3", "--after", first["next"]) == ["snow"]


def test_a_listing_for_people(address: str, capsys: Capture) -> None:
    asked = ["search", "--index", address, "-k", "3", "--facet", "label", "--explain"]
    assert cli.main(asked) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "1    a apple  apple",
        "2    a flag   flag",
        "3    a lime   lime",
        "",
        "label",
        "  a apple  1",
        "  a flag   1",
        "  a lime   1",
        "  a snow   1",
    ]
    total, more = err.splitlines()
    assert total == "lexvla: 4 in all"
    after = more.removeprefix("lexvla: for more: --after ")
    assert ids(capsys, address, "-k", "3", "--after", after) == ["snow"]


def test_facets_of_dates_and_of_fields_with_a_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use(monkeypatch, FakeEncoder())
    manifest = tmp_path / "items.jsonl"
    dates = ("2024-05-31T23:59:59", "2024-06-01T00:00:00", "2024-06-01T12:30:00")
    for name, taken in zip("abc", dates, strict=True):
        item = {"id": name, "text": "red", "metadata": {"taken": taken, "dc:title": "T"}}
        with manifest.open("a") as file:
            file.write(json.dumps(item) + "\n")
    assert cli.main(["index", str(manifest), "--index", str(tmp_path / "dates.lex")]) == 0
    capsys.readouterr()
    asked = ["search", "--index", str(tmp_path / "dates.lex"), "--facet", "dc:title"]
    found = run(capsys, *asked, "--facet", "taken:2024-06-01,2024-06-01T12:30")["facets"]
    assert found["dc:title"]["values"] == [{"value": "T", "count": 3}]
    assert [part["count"] for part in found["taken"]["ranges"]] == [1, 1, 1]
    assert found["taken"]["ranges"][1]["to"] == "2024-06-01T12:30"


def test_a_region(address: str, tmp_path: Path, capsys: Capture) -> None:
    image = str(tmp_path / "photos" / "flag.png")
    spot = run(capsys, "search", "--index", address, "--image", image, "--region", "48,48,16,16")
    assert spot["query"]["words"][0]["word"] == "red"
    assert spot["query"]["region"] == [48, 48, 16, 16]
    ground = run(capsys, "search", "--index", address, "--image", image, "--region", "0,0,16,16")
    assert ground["hits"][0]["id"] == "flag"
    assert cli.main(["search", "--index", address, "--image", image, "--region", "0,0,65,1"]) == 1
    assert "must lie within the image of 64 x 64 pixels" in capsys.readouterr().err


def test_without_a_model(
    address: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", None)
    assert ids(capsys, address, "a RED thing", "--no-model") == ["apple", "flag"]
    assert ids(capsys, address, "--term", "green=1", "--no-model") == ["lime"]
    hit = run(capsys, "explain", "apple", "red", "--index", address, "--no-model")["hit"]
    assert hit["rank"] == 1
    image = str(tmp_path / "photos" / "flag.png")
    assert cli.main(["search", "--image", image, "--index", address, "--no-model"]) == 1
    assert "an image needs a model" in capsys.readouterr().err
    picture = tmp_path / "why.png"
    arguments = ["explain", "apple", "red", "--index", address, "--no-model"]
    assert cli.main([*arguments, "--picture", str(picture)]) == 0
    assert Image.open(picture).size[0] > 384
    assert cli.main([*arguments, "--heatmap", str(picture)]) == 2


def test_legs_and_fusions(hybrid: str, capsys: Capture) -> None:
    text = QUERIES["q6"]
    answers = {}
    for arguments in (
        ("--fusion", "rrf"),
        ("--fusion", "weighted"),
        ("--weights", "lexical=0.2,dense=0.8"),
        ("--fusion", "minmax", "--weights", "lexical=0.2,dense=0.8"),
        ("--fusion", "rrf", "--weights", "dense=2"),
        ("--legs", "dense"),
    ):
        data = run(capsys, "search", text, "--index", hybrid, *arguments)
        answers[arguments] = (data["query"]["legs"], data["query"]["fusion"])
        assert data["hits"]
    assert list(answers.values()) == [
        (["lexical", "dense"], "rrf (constant 60)"),
        (["lexical", "dense"], "weighted"),
        (["lexical", "dense"], "weighted (lexical 0.2, dense 0.8)"),
        (["lexical", "dense"], "weighted (minmax scores, lexical 0.2, dense 0.8)"),
        (["dense"], "rrf (constant 60, dense 2)"),
        (["dense"], "dense"),
    ]


def test_hybrid_for_people(hybrid: str, capsys: Capture) -> None:
    assert cli.main(["search", QUERIES["q6"], "--index", hybrid, "-k", "1"]) == 0
    assert "[dense]" in capsys.readouterr().out
    assert cli.main(["search", QUERIES["q6"], "--index", hybrid, "--explain", "-k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line][-3:] == ["lexical", "dense", "weighted"]


def test_relevance_for_people(
    hybrid: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = RowEncoder(("lexical", "dense"))
    encoder.score_weights, encoder.relevance = {"lexical": 0.5, "dense": 0.5}, (10.0, -5.0)
    use(monkeypatch, encoder)
    assert cli.main(["search", "word0:1", "--index", hybrid, "-k", "1"]) == 0
    good = capsys.readouterr()
    assert good.out.startswith("1  1.000   99%  d00  d00  word0 0.500  [dense] 0.500")
    assert good.err == ""
    assert cli.main(["search", "word1:0.125", "--index", hybrid, "--explain"]) == 0
    assert capsys.readouterr().out.startswith("1. d01  d01  score 0.5625, relevance 65%\n")
    assert cli.main(["explain", "d00", "word7:1", "--index", hybrid]) == 0
    assert capsys.readouterr().out.startswith("d00  d00  score 0.0000, relevance 1%  not")
    for arguments in ((), ("--min-relevance", "0.9")):
        assert cli.main(["search", "word7:0.125", "--index", hybrid, *arguments]) == 0
        shown = capsys.readouterr()
        assert shown.err == "lexvla: no hit matches well (relevance below 0.1)\n"
        assert bool(shown.out) == (not arguments)
    data = run(capsys, "search", "word7:0.125", "--index", hybrid)
    assert data["good_match"] is False
    assert data["hits"][0]["relevance"] < 0.1


def test_fit_fusion(
    hybrid: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = RowEncoder(("lexical", "dense"))
    encoder.score_weights = {"lexical": 0.9, "dense": 0.1}
    use(monkeypatch, encoder)
    (tmp_path / "q.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in QUERIES.items()))
    lines = [f"{n} 0 {doc} 1\n" for n, judged in QRELS.items() for doc in judged]
    (tmp_path / "qrels.txt").write_text("".join(lines))
    arguments = ["fit-fusion", "--index", hybrid, "--queries", str(tmp_path / "q.tsv")]
    arguments += ["--qrels", str(tmp_path / "qrels.txt"), "--measure", "R@1"]
    dry = run(capsys, *arguments, "--dry-run")
    assert (dry["stored"], dry["value"], dry["tested_on"]) == (False, 1, 3)
    assert not (Path(hybrid) / "fusion.json").exists()
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "gain over the default: +" in out
    with filled(hybrid, (), RowEncoder(("lexical", "dense"))) as index:
        fusion = load_fusion(index)
        assert isinstance(fusion, Weighted)
        expected = Searcher(RowEncoder(), index).search(Query(text=QUERIES["q6"], fusion=fusion))
    data = run(capsys, "search", QUERIES["q6"], "--index", hybrid)
    assert data["query"]["fusion"] == str(fusion)
    assert [hit["id"] for hit in data["hits"]] == [hit.id for hit in expected]
    assert run(capsys, "fit-fusion", "--index", hybrid, "--reset")["reset"] is True
    assert not (Path(hybrid) / "fusion.json").exists()
    assert cli.main(["fit-fusion", "--index", hybrid, "--reset"]) == 0
    assert "that name no fusion used the model's already" in capsys.readouterr().err
    assert cli.main(["fit-fusion", "--index", hybrid]) == 2
    assert "--queries and --qrels are needed, or --reset" in capsys.readouterr().err


def test_a_fusion_that_is_no_better_than_the_default_is_not_stored(
    hybrid: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "q.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in QUERIES.items()))
    lines = [f"{n} 0 d{i:02} 1\n" for n in QUERIES for i in range(len(ROWS))]
    (tmp_path / "qrels.txt").write_text("".join(lines))
    arguments = ["fit-fusion", "--index", hybrid, "--queries", str(tmp_path / "q.tsv")]
    arguments += ["--qrels", str(tmp_path / "qrels.txt"), "--measure", "RR@10"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert "gain over the default: +0.0000 RR@10" in shown.out
    assert shown.err.endswith("lexvla: not stored, as it is no better than the default\n")
    assert not (Path(hybrid) / "fusion.json").exists()
    assert run(capsys, *arguments)["stored"] is False


def test_explain_tells_what_a_dense_vector_is_about(
    hybrid: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder(RowEncoder):
        def nearest_words(self, vectors: np.ndarray) -> list[list[tuple[str, float]]]:
            return [[(f"word{row.argmax()}", float(row.max()))] for row in vectors]

    use(monkeypatch, Encoder())
    data = run(capsys, "explain", "d01", "word0:1", "--index", hybrid, "--nearest")
    assert data["nearest"] == [{"word": "word1", "cosine": 1.0}]
    assert cli.main(["explain", "d01", "word0:1", "--index", hybrid, "--nearest"]) == 0
    assert "\nits dense vector is nearest to those of  word1 1.000\n" in capsys.readouterr().out
    assert cli.main(["explain", "d01", "word0", "--index", hybrid, "--nearest", "--no-model"]) == 2
    assert "--nearest needs a model" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["red", "blue"])
def test_explain_draws_a_picture(address: str, word: str, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "why.png"
    data = run(capsys, "explain", "flag", word, "--index", address, "--picture", str(target))
    assert (data["picture"], data["heatmap"]) == (str(target), None)
    pixels = np.asarray(Image.open(target), dtype=float)[:384, :384]
    glow = pixels[..., 0].reshape(4, 96, 4, 96).mean(axis=(1, 3))
    patch = data["hit"]["explanation"]["matches"][0]["patch"]
    assert np.unravel_index(glow.argmax(), (4, 4)) == (patch // 4, patch % 4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--boost", "red"], "must be a word with a weight, such as red=2, not 'red'"),
        (["--boost", "red=x"], "must be a finite number, not 'x'"),
        (["--boost", "red=0"], "'red': a factor of boost must be a number"),
        (["--term", "=2"], "must be a word with a weight, such as red=2, not '=2'"),
        (["--term", "red=inf"], "must be a finite number, not 'inf'"),
        (["--ban", " "], "a word of ban must not be blank"),
        (["--region", "1,2,3"], "must be x,y,width,height, not '1,2,3'"),
        (["--region", "1,2,3,4"], "'region': needs an image"),
        (["--legs", "words"], "'words': a leg must be one of"),
        (["--legs", ""], "'': a leg must be one of"),
        (["--fusion", "best"], "invalid choice: 'best'"),
        (["--weights", "words=1"], "'words': a leg to weigh must be one of"),
        (["--weights", "dense=-1"], "the weight of the leg dense"),
        (["--fusion", "dense", "--weights", "dense=1"], "one leg alone takes no weights"),
        (["--offset", "-1"], "must be a whole number of at least 0, not '-1'"),
        (["--offset", "10000"], "at most 10,000 together"),
        (["-k", "10001"], "at most 10,000 together"),
        (["--min-score", "nan"], "must be a finite number, not 'nan'"),
        (["--min-relevance", "2"], "must be a number from 0 to 1, not 2.0"),
    ],
)
def test_wrong_usage(arguments: list[str], complaint: str, capsys: Capture) -> None:
    assert cli.main(["search", "red", "--index", "x.lex", *arguments]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--ban", "zebra"], "'zebra': the vocabulary has no such word"),
        (["--boost", "zebra=2"], "'zebra': the vocabulary has no such word"),
        (["--ban", "red"], "nothing to look for is left without these words"),
        (["--ban", "green", "--require", "green"], "'green': is banned, but is in require too"),
        (["--legs", "dense"], "the query has no dense leg"),
        (["--fusion", "codes"], "the query has no codes leg"),
        (["--weights", "lexical=1,dense=1"], "the query has no dense leg"),
        (["--min-relevance", "0.5"], "min_relevance: scores of lexical are not calibrated"),
    ],
)
def test_what_cannot_be_asked(
    address: str, arguments: list[str], complaint: str, capsys: Capture
) -> None:
    assert cli.main(["search", "red", "--index", address, *arguments]) == 1
    assert complaint in capsys.readouterr().err
