"""``lexvla evaluate`` and ``lexvla crossmodal`` on a few documents whose figures follow by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla_indexer import Document, open_index
from lexvla_search import Query, Searcher, cli
from lexvla_search.evaluation.protocols import DEPTHS, PAIRED, PROTOCOLS, RETRIEVED
from lexvla_search.evaluation.provenance import run_tag
from lexvla_search.evaluation.runs import Beforehand, System, cut_queries, retrieve, systems
from lexvla_search.evaluation.trec import read_run
from search_fakes import FakeEncoder, unit

pytest.importorskip("ir_measures", reason="needs ir-measures: pip install 'lexvla[evaluation]'")

Capture = pytest.CaptureFixture[str]

# Columns: red, green, blue, yellow, white, black.
LEXICAL = {
    "apple": [0.8, 0, 0, 0, 0, 0.2],
    "flag": [0.6, 0, 0.8, 0, 0, 0],
    "lime": [0, 1, 0, 0, 0, 0],
    "snow": [0, 0, 0, 0, 1, 0],
}
DENSE = {"apple": [0, 1, 0], "flag": [0, 0, 1], "lime": [1, 0, 0], "snow": [0.6, 0.8, 0]}
GROUPS = {"apple": "fruit", "flag": "thing", "lime": "fruit", "snow": "thing"}

# lexical  red: apple, flag   blue: flag         green: lime         mauve: no word
# dense    red: lime, snow    blue: flag         green: apple, snow
# rrf      red: apple = lime  blue: flag         green: apple = lime, snow
QUERIES = "q1\tred\nq2\tblue\nq3\tgreen\nq4\tmauve\n"
QRELS = "q1 0 apple 1\nq2 0 flag 1\nq3 0 snow 1\nq3 0 flag 0\nq4 0 lime 1\n"
BASELINE = "q1 Q0 lime 1 2.5 old\nq2 Q0 apple 1 2 old\nq3 Q0 snow 1 9 old\n"


class DenseEncoder(FakeEncoder):
    """Give the first three words as a dense vector too."""

    def encode_text(self, texts: list[str]) -> Encoding:
        lexical = super().encode_text(texts).lexical
        return Encoding(lexical, dense=unit(lexical.toarray()[:, :3]))


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    encoder = DenseEncoder()
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)
    return encoder


@pytest.fixture
def files(tmp_path: Path, model: FakeEncoder) -> dict[str, str]:
    address = str(tmp_path / "colours.lex")
    rows = np.array(list(LEXICAL.values()), np.float32)
    dense = np.array(list(DENSE.values()), np.float32)
    with open_index(address, create=True, vocabulary=model.vocabulary, model=model.name) as index:
        documents = [Document(name, metadata={"kind": GROUPS[name]}) for name in LEXICAL]
        index.add(documents, Encoding(sparse.csr_array(rows), dense=dense))
        index.commit()
    names = {"index": address}
    for name, text in (("queries", QUERIES), ("qrels", QRELS), ("baseline", BASELINE)):
        names[name] = str(tmp_path / f"{name}.txt")
        Path(names[name]).write_text(text)
    return names


def evaluate(files: dict[str, str], *arguments: str) -> int:
    given = [f"--{name}={files[name]}" for name in ("index", "queries", "qrels")]
    return cli.main(["evaluate", *given, *arguments])


def figures(capsys: Capture, files: dict[str, str], *arguments: str) -> Any:
    assert evaluate(files, *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


SYSTEMS = ("--legs", "lexical", "dense", "lexical,dense", "--fusion", "rrf")
R15 = ("--measures", "R@1 R@5")


def test_systems_are_measured_in_one_table(files: dict[str, str], capsys: Capture) -> None:
    found = figures(capsys, files, *SYSTEMS, *R15, "--baseline", files["baseline"])
    assert {system["name"]: system["measures"] for system in found["systems"]} == {
        "lexical": {"R@1": 0.5, "R@5": 0.5},
        "dense": {"R@1": 0.25, "R@5": 0.5},
        "lexical+dense rrf": {"R@1": 0.5, "R@5": 0.75},
    }
    assert found["baseline"] == {"R@1": 0.25, "R@5": 0.25}
    assert [list(system["unanswered"]) for system in found["systems"]] == [["q4"]] * 3
    assert found["systems"][0]["unanswered"]["q4"] == "no such word: mauve"
    # Two queries better and one worse by 1, in whatever way they are swapped.
    assert found["significance"]["R@1"]["lexical"] == {
        "difference": 0.25,
        "p": 1.0,
        "corrected": 1.0,
    }
    # Two of four ways give two queries 1 more, or 1 less.
    assert found["significance"]["R@5"]["lexical+dense rrf"] == {
        "difference": 0.5,
        "p": 0.5,
        "corrected": 1.0,
    }


@pytest.mark.java
def test_lucene_gives_the_same_figures(
    files: dict[str, str], tmp_path: Path, model: FakeEncoder, capsys: Capture
) -> None:
    address = f"lucene:{tmp_path / 'colours.lucene'}"
    with (
        open_index(files["index"]) as source,
        open_index(address, create=True, vocabulary=model.vocabulary, model=model.name) as target,
    ):
        target.add(*source.fetch(list(LEXICAL)))
        target.commit()
    legs = ("--legs", "lexical", "--measures", "R@1 R@5 RR", "--group", "kind")
    here = figures(capsys, files, *legs)
    there = figures(capsys, {**files, "index": address}, *legs)
    own = {"index": "", "provenance": {}}
    assert {**there, **own} == {**here, **own}


def test_groups_are_those_of_the_right_documents(files: dict[str, str], capsys: Capture) -> None:
    found = figures(capsys, files, "--legs", "lexical", "dense", "--group", "kind")
    assert found["groups"] == {
        "fruit": {"queries": 2, "R@1": {"lexical": 0.5, "dense": 0.0}},
        "thing": {"queries": 2, "R@1": {"lexical": 0.5, "dense": 0.5}},
    }
    assert evaluate(files, "--group", "colour") == 1
    assert "no relevant document has this metadata field" in capsys.readouterr().err


def test_runs_values_and_plots_are_written(
    files: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'lexvla[evaluation]'")
    run, values, plot = (str(tmp_path / name) for name in ("out.trec", "values.tsv", "plot.svg"))
    found = figures(
        capsys, files, *SYSTEMS, *R15, "--run", run, "--per-query", values, "--plot", plot
    )
    written = [Path(system["run"]).name for system in found["systems"]]
    assert written == ["out.lexical.trec", "out.dense.trec", "out.lexical+dense-rrf.trec"]
    assert list(read_run(tmp_path / "out.lexical+dense-rrf.trec")["q3"]) == [
        "apple",
        "lime",
        "snow",
    ]
    first = (tmp_path / "out.lexical.trec").read_text().splitlines()[0]
    assert first == "q1 Q0 apple 1 0.800000012 " + run_tag(FakeEncoder(), "lexical")
    rows = Path(values).read_text().splitlines()
    assert len(rows) == 1 + 3 * 2 * 4
    assert rows[:2] == ["query\tsystem\tmeasure\tvalue", "q1\tlexical\tR@1\t1.0"]
    assert "q4\tlexical+dense rrf\tR@5\t0.0" in rows
    assert found["by_words"]["R@1"] == [{"words": 1.0, "value": 0.5}]
    assert Path(plot).read_text().startswith("<?xml")
    assert figures(capsys, files, "--run", run)["systems"][0]["run"] == run


def test_people_see_a_table(files: dict[str, str], capsys: Capture) -> None:
    base = ("--baseline", files["baseline"], "--test", "t", "--group", "kind")
    assert evaluate(files, *SYSTEMS[:3], *R15, *base) == 0
    out, err = capsys.readouterr()
    assert "4 queries, 100 hits of each; equal scores are ordered by id" in out
    assert [
        line.split() for line in out.splitlines() if line.startswith(("lexical ", "baseline "))
    ][:2] == [["lexical", "0.5000", "0.5000"], ["baseline", "0.2500", "0.2500"]]
    assert "paired t-test" in out
    assert "R@1 by group" in out
    assert "lexical: 1 of 4 queries have no hits and count 0; the first is 'q4'" in err


def test_all_that_is_wrong_is_told_at_once(files: dict[str, str], capsys: Capture) -> None:
    Path(files["qrels"]).write_text("q1 0 my apple 1\nq2 0 flag 1\n")
    Path(files["queries"]).write_text("q1\tred\nq2 blue\n")
    Path(files["baseline"]).write_text("q1 Q0 a 1 nan x\nq1 Q0 a 1 2 x\nq1 Q0 a 1 3 x\n")
    assert evaluate(files, "--baseline", files["baseline"]) == 1
    err = capsys.readouterr().err.splitlines()
    places = [line.partition("'")[2].partition("'")[0] for line in err]
    assert places == [
        f"{files['queries']}:2",
        f"{files['qrels']}:1",
        f"{files['baseline']}:1",
        f"{files['baseline']}:3",
    ]


def test_unknown_ids_and_queries_without_an_answer_are_told_at_once(
    files: dict[str, str], capsys: Capture
) -> None:
    Path(files["qrels"]).write_text("q1 0 pear 1\nq2 0 flag 0\nq9 0 snow 1\n")
    assert evaluate(files, "--strict") == 1
    err = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("lexvla: error: ") for line in err] == [
        f"'{files['qrels']}:1': the index has no document 'pear'",
        f"'{files['qrels']}:3': there is no query 'q9'",
        f"'{files['queries']}:2': the judgements have no relevant document for the query 'q2'",
        f"'{files['queries']}:3': the judgements have no relevant document for the query 'q3'",
        f"'{files['queries']}:4': the judgements have no relevant document for the query 'q4'",
    ]


def test_what_trec_eval_takes_is_counted_and_told(files: dict[str, str], capsys: Capture) -> None:
    Path(files["qrels"]).write_text("q1 0 apple 1\nq1 0 pear 1\nq2 0 flag 0\nq9 0 snow 1\n")
    means = {}
    for more in ([], ["--complete"]):
        options = ["--legs", "lexical", "--measures", "R@1", "R@5", "--group", "kind", "--json"]
        assert evaluate(files, *options, *more) == 0
        out, err = capsys.readouterr()
        means[bool(more)] = json.loads(out)["systems"][0]["measures"]
        told = [line.removeprefix("lexvla: ") for line in err.splitlines()]
        assert told[:3] == [
            "judgements of documents that the index does not have: 1; "
            f"the first is '{files['qrels']}:2': the index has no document 'pear'",
            "judgements of queries that are not asked: 1; "
            f"the first is '{files['qrels']}:4': there is no query 'q9'",
            "queries without a relevant document: 3; the first is "
            f"'{files['queries']}:2': the judgements have no relevant document for the query 'q2'",
        ]
    # q1 finds one of two, q2 has nothing to find, q9 is not asked.
    assert means == {
        False: {"R@1": 0.25, "R@5": 0.25},
        True: {"R@1": pytest.approx(1 / 6), "R@5": pytest.approx(1 / 6)},
    }
    Path(files["qrels"]).write_text("q9 0 snow 1\n")
    assert evaluate(files) == 1
    assert "has no judgement of any of the queries" in capsys.readouterr().err


def test_what_made_a_figure_is_told(files: dict[str, str], capsys: Capture, tmp_path: Path) -> None:
    run = tmp_path / "out.trec"
    assert evaluate(files, "--fusion", "rrf", "--run", str(run), "--json") == 0
    told = json.loads(capsys.readouterr().out)["provenance"]
    with open_index(files["index"]) as index:
        assert told["vocabulary_sha256"] == index.vocabulary.sha256
    assert (told["engine"], told["model"], told["documents"], told["seed"]) == (
        "embedded", "fake", 4, 0,
    )  # fmt: skip
    tag = run.read_text().splitlines()[0].split()[-1]
    assert tag == f"lexvla-{told['program_version']}-fake-rrf"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--legs", "lexical,colour"), "a leg must be one of"),
        (("--fusion", "magic"), "a fusion must be one of"),
        (("--measures", "F99"), "is not a measure"),
        (("--depth", "10001"), "10,000 hits deep"),
        (("--measures", "R@20000"), "10,000 hits deep"),
        (("--plot", "plot.pdf"), "--plot: must name"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], said: str, files: dict[str, str], capsys: Capture
) -> None:
    assert evaluate(files, *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_missing_is_told_before_the_searches(
    files: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    assert evaluate(files, "--run", str(tmp_path / "nowhere" / "out.trec")) == 1
    assert "its folder does not exist" in capsys.readouterr().err


def test_ids_that_a_run_cannot_hold_are_told_before_the_searches(
    files: dict[str, str], capsys: Capture, tmp_path: Path
) -> None:
    spaced = tmp_path / "spaced"
    spaced.write_text("q1\t0\tmy photo.jpg\t1\nq1\t0\tmy other.jpg\t1\n", encoding="utf-8")
    assert evaluate({**files, "qrels": str(spaced)}, "--run", str(tmp_path / "out.trec")) == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "the document id 'my photo.jpg' (and 1 more) is empty or has white space" in told


def test_a_leg_alone_is_one_system() -> None:
    both = ("lexical", "dense")
    assert systems() == [System()]
    assert systems(["lexical", "dense,lexical"], ["rrf", "weighted", "dense"]) == [
        System(("lexical",)),
        System(("dense",)),
        System(both, "rrf"),
        System(both, "weighted"),
    ]
    assert [system.name for system in systems(fusions=["rrf", "lexical"])] == ["rrf", "lexical"]
    with pytest.raises(InputError, match="a leg must be one of"):
        systems([""])


def test_an_image_that_cannot_be_read_is_no_unanswered_query(
    files: dict[str, str], tmp_path: Path, model: FakeEncoder
) -> None:
    queries = {"a": Query(image=tmp_path / "none.png"), "b": Query(text="red")}
    with open_index(files["index"]) as index, pytest.raises(InputError, match=r"none\.png"):
        retrieve(Searcher(model, index), queries, 5, System(("lexical",)))


def test_queries_are_cut_to_their_heaviest_words(files: dict[str, str], model: FakeEncoder) -> None:
    queries = {"q": Query(text="red red white"), "none": Query(text="mauve")}
    with open_index(files["index"]) as index:
        found = cut_queries(Searcher(model, index), queries, 5, kept=(1, 2, 4, 8))
    assert list(found) == [1, 2]
    assert [words for words, _ in found.values()] == [1.0, 2.0]
    assert list(found[1][1]["q"]) == ["apple", "flag"]
    assert list(found[2][1]["q"]) == ["apple", "flag", "snow"]


def test_queries_are_encoded_in_batches_and_once(model: FakeEncoder) -> None:
    asked: list[int] = []

    class Counting(DenseEncoder):
        def encode_text(self, texts: list[str]) -> Encoding:
            asked.append(len(texts))
            return super().encode_text(texts)

        def encode_image(self, images: list) -> Encoding:
            asked.append(-len(images))
            return super().encode_image(images)

    encoder = Beforehand(Counting(), batch_size=2)
    texts = ["red", "blue", "red", "mauve", "white"]
    expected = model.encode_text(texts)
    for _ in range(2):
        found = encoder.encode_text(texts)
        assert found.lexical.toarray().tolist() == expected.lexical.toarray().tolist()
        assert found.dense.tolist() == expected.dense.tolist()
    assert asked == [2, 2]
    pictures = [Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")]
    for _ in range(2):
        assert (
            encoder.encode_image(pictures).lexical.nnz
            == encoder.encode_image(pictures[::-1]).lexical.nnz
        )
    assert asked == [2, 2, -2]
    assert encoder.patch_grid == model.patch_grid


def test_the_arguments_offer_what_there_is() -> None:
    assert {*PROTOCOLS} == {*PAIRED, *RETRIEVED, "folders"} == {*PAIRED, *DEPTHS}


def test_crossmodal_over_folders(tmp_path: Path, capsys: Capture) -> None:
    colours = {"red": ["red", "#ff2020"], "green": ["#00ff00", "red"], "blue": ["blue", "#2020ff"]}
    for name, shades in colours.items():
        (tmp_path / name).mkdir()
        for i, shade in enumerate(shades):
            Image.new("RGB", (8, 8), shade).save(tmp_path / name / f"{i}.png")

    def run(*arguments: str) -> Any:
        assert cli.main(["crossmodal", "folders", str(tmp_path), *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["figures"]

    # The red one among the green ones is told for red, and red itself ties with it.
    assert run("--zero-shot", "--prompt", "a {} thing")["zero-shot accuracy"]["1"] == 5 / 6
    assert run("--zero-shot")["mean over classes"] == pytest.approx(100 * (1 + 0.5 + 1) / 3)
    assert run("--active", "1")["image to image R"]["1"] == pytest.approx(2 / 6)
    assert cli.main(["crossmodal", "folders", str(tmp_path), "--prompt", "a thing"]) == 2
    assert cli.main(["crossmodal", "coco", str(tmp_path / "none.json"), "--zero-shot"]) == 2
    assert cli.main(["crossmodal", "cub", str(tmp_path)]) == 1
    capsys.readouterr()
    assert cli.main(["crossmodal", "folders", str(tmp_path), "--zero-shot"]) == 0
    assert "6 images, 3 classes; lexical; in percent; ties count against" in capsys.readouterr().out
