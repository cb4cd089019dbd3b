"""Test collections in BEIR's layout and of ir_datasets, indexed and evaluated by the command."""

from __future__ import annotations

import doctest
import json
import sys
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lexvla.errors import InputError, OptionalDependencyError
from lexvla_indexer import Document, open_index, text_fields
from lexvla_indexer.item_source import ListedItem, UnlistedItem
from lexvla_indexer.sources import open_item_source
from lexvla_search import cli
from lexvla_search.evaluation.collection import read_collection
from search_fakes import FakeEncoder

pytest.importorskip("ir_measures", reason="needs ir-measures: pip install 'lexvla[evaluation]'")

Capture = pytest.CaptureFixture[str]

CORPUS = [
    {"_id": "d1", "title": "Red", "text": "red", "metadata": {"url": "u/1"}},
    {"_id": "d2", "title": "Red", "text": "green", "metadata": {}},
    {"_id": "d3", "title": "", "text": "blue green green", "metadata": {}},
]
QUERIES = [
    {"_id": "q1", "text": "red", "metadata": {"url": "x"}},
    {"_id": "d3", "text": "green", "metadata": {}},
    {"_id": "q3", "text": "blue", "metadata": {}},
]
HEADER = "query-id\tcorpus-id\tscore"
TEST = [("q1", "d2", 2), ("q1", "d1", 1), ("d3", "d2", 1)]
TRAIN = [("q3", "d3", 1)]

# q1 finds d1, then d2; d3 finds d3, then d2.
Q1 = (1 + 2 / log2(3)) / (2 + 1 / log2(3))
NDCG = (Q1 + 1 / log2(3)) / 2
LEXICAL = ("--legs", "lexical", "--measures", "nDCG@10", "--json")


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    encoder = FakeEncoder()
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)
    return encoder


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "colours"
    (folder / "qrels").mkdir(parents=True)
    for name, lines in (("corpus", CORPUS), ("queries", QUERIES)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    for name, judged in (("test", TEST), ("train", TRAIN)):
        lines = [HEADER, *("\t".join(map(str, each)) for each in judged)]
        (folder / "qrels" / f"{name}.tsv").write_text("\r\n".join(lines))
    return folder


class TitledDoc(NamedTuple):
    doc_id: str
    text: str
    title: str
    url: str | None
    year: int
    authors: list[str]
    parts: tuple[int, ...]

    def default_text(self) -> str:
        return f"{self.title} {self.text}"


class BareDoc(NamedTuple):
    doc_id: str
    body: str


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a collection with ir_datasets, and return the name of its test queries."""
    ir_datasets = pytest.importorskip(
        "ir_datasets", reason="needs ir-datasets: pip install 'lexvla[ir-datasets]'"
    )
    formats, datasets = ir_datasets.formats, ir_datasets.datasets.base

    class Docs(formats.BaseDocs):
        def __init__(self, kind: type, rows: list[Any]) -> None:
            self._kind, self._rows = kind, rows

        def docs_iter(self) -> Any:
            return iter(self._rows)

        def docs_cls(self) -> type:
            return self._kind

        def docs_count(self) -> int:
            return len(self._rows)

    class Queries(formats.BaseQueries):
        def queries_iter(self) -> Any:
            return (formats.GenericQuery(each["_id"], each["text"]) for each in QUERIES)

        def queries_cls(self) -> type:
            return formats.GenericQuery

    class Qrels(formats.BaseQrels):
        def qrels_iter(self) -> Any:
            return (formats.TrecQrel(*each, "0") for each in TEST)

    rows = [
        TitledDoc(
            each["_id"], each["text"], each["title"], each["metadata"].get("url"),
            2020, ["A", "B"], (1, 2),
        )
        for each in CORPUS
    ]  # fmt: skip
    docs = Docs(TitledDoc, rows)
    known = dict(ir_datasets.registry._registered)
    monkeypatch.setattr(ir_datasets.registry, "_registered", known)
    known["tiny"] = datasets.Dataset(docs)
    known["tiny/test"] = datasets.Dataset(docs, Queries(), Qrels())
    known["bare"] = datasets.Dataset(Docs(BareDoc, [BareDoc("x", "red"), BareDoc("y", " ")]))
    return "ir_datasets:tiny/test"


def lexvla(*arguments: str) -> int:
    return cli.main(list(arguments))


def documents(source: str | Path, text_field: str | None = None) -> list[Document]:
    entries = list(open_item_source(source, text_field).entries())
    assert all(isinstance(entry, ListedItem) for entry in entries), entries
    return [entry.document for entry in entries if isinstance(entry, ListedItem)]


def ndcg(capsys: Capture, *arguments: str) -> Any:
    assert lexvla("evaluate", *arguments, *LEXICAL) == 0
    out, err = capsys.readouterr()
    assert err == ""  # all that is judged is there
    told = json.loads(out)
    return told["queries"], told["systems"][0]["measures"]["nDCG@10"]


def test_a_folder_of_beir_is_indexed_and_evaluated(
    beir: Path, tmp_path: Path, capsys: Capture
) -> None:
    index = str(tmp_path / "colours.lex")
    assert lexvla("index", str(beir), "--index", index) == 0
    capsys.readouterr()
    with open_index(index) as opened:
        assert [each.text for each in opened.fetch(["d1", "d2", "d3"]).documents] == [
            "Red red",
            "Red green",
            "blue green green",
        ]
    where = (str(beir), "--index", index)
    assert ndcg(capsys, *where) == (2, pytest.approx(NDCG))
    assert ndcg(capsys, *where, "--split", "train") == (1, 1.0)
    own = ndcg(capsys, *where, "--ignore-identical-ids")
    assert own == (2, pytest.approx((Q1 + 1) / 2))
    assert lexvla("evaluate", *where, *LEXICAL, "--ignore-identical-ids") == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == {
        "collection": str(beir),
        "split": "test",
        "queries": None,
        "qrels": None,
        "complete": False,
        "ignore_identical_ids": True,
    }
    # What is cut off is not one hit more of the other queries.
    depth = ("--depth", "1", "--measures", "R@1", "--ignore-identical-ids")
    run = tmp_path / "out.trec"
    assert lexvla("evaluate", *where, "--legs", "lexical", *depth, "--run", str(run)) == 0
    assert [line.split()[:3:2] for line in run.read_text().splitlines()] == [
        ["q1", "d1"],
        ["d3", "d2"],
    ]
    # The same by its files, where all queries are asked.
    capsys.readouterr()
    files = ("--queries", str(beir / "queries.jsonl"), "--qrels", str(beir / "qrels" / "test.tsv"))
    assert lexvla("evaluate", "--index", index, *files, *LEXICAL) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["systems"][0]["measures"]["nDCG@10"] == pytest.approx(NDCG)
    assert "queries without a relevant document: 1" in err


def test_fields_of_a_corpus_are_joined_as_asked(beir: Path, tmp_path: Path) -> None:
    (first, *_) = documents(beir)
    assert first == Document("d1", text="Red red", metadata={"url": "u/1"})
    assert [each.text for each in documents(beir, "text")] == ["red", "green", "blue green green"]
    both = documents(beir / "corpus.jsonl", "text, title+metadata.url")
    assert [each.text for each in both] == ["red\nRed u/1", "green\nRed", "blue green green"]
    # The folder and its file are one source.
    assert open_item_source(beir).key == open_item_source(beir / "corpus.jsonl").key
    # Without queries, a folder is one of images.
    (beir / "queries.jsonl").unlink()
    assert documents(beir) == []


def test_the_example_of_text_fields() -> None:
    assert doctest.testmod(text_fields).attempted == 2
    assert doctest.testmod(text_fields).failed == 0


def test_a_collection_of_ir_datasets_is_indexed_and_evaluated(
    registered: str, tmp_path: Path, capsys: Capture
) -> None:
    index = str(tmp_path / "colours.lex")
    assert lexvla("index", registered, "--index", index) == 0
    # The documents belong to the collection, whichever queries it is named with.
    capsys.readouterr()
    assert lexvla("index", "ir_datasets:tiny", "--index", index, "--prune", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] == 3
    assert ndcg(capsys, registered, "--index", index) == (2, pytest.approx(NDCG))


def test_what_a_document_of_ir_datasets_becomes(registered: str) -> None:
    (first, *_) = documents(registered)
    others = {"year": 2020, "authors": ["A", "B"]}
    assert first == Document("d1", text="Red red", metadata={"url": "u/1", **others})
    (first, *_) = documents(registered, "title,authors")
    assert first == Document(
        "d1", text="Red\nA B", metadata={"text": "red", "url": "u/1", **others}
    )
    assert open_item_source("ir_datasets:bare", "body").count() == 2
    good, bad = open_item_source("ir_datasets:bare", "body").entries()
    assert isinstance(good, ListedItem)
    assert good.document == Document("x", text="red")
    assert isinstance(bad, UnlistedItem)
    assert (bad.id, bad.reject.rule, bad.reject.where) == ("y", "has no text", "bare:2")


@pytest.mark.parametrize(
    ("source", "field", "rule"),
    [
        ("ir_datasets:none", None, "'ir_datasets:none': ir_datasets has no dataset of this name"),
        ("ir_datasets:tiny", "words", "has no field 'words'; there are doc_id, text, title"),
        ("ir_datasets:bare", None, "does not say which field is the text; there are doc_id, body"),
    ],
)
def test_names_that_ir_datasets_does_not_know_are_refused(
    registered: str, source: str, field: str | None, rule: str
) -> None:
    with pytest.raises(InputError, match=rule):
        open_item_source(source, field)


def test_collections_that_cannot_be_evaluated_are_refused(
    registered: str, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="this dataset has no queries and no qrels"):
        read_collection("ir_datasets:tiny")
    with pytest.raises(InputError, match="names its split itself"):
        read_collection(registered, "test")
    with pytest.raises(InputError, match="has no split 'dev'; it has test, train"):
        read_collection(str(beir), "dev")
    with pytest.raises(InputError, match=r"must be a folder with corpus\.jsonl"):
        read_collection(str(tmp_path))
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[ir-datasets\]'"):
        read_collection(registered)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "needs either a COLLECTION or both --queries and --qrels"),
        (("--queries", "q"), "needs either a COLLECTION or both --queries and --qrels"),
        (("c", "--qrels", "q"), "a COLLECTION has queries and judgements of its own"),
        (("--queries", "q", "--qrels", "r", "--split", "x"), "--split goes with a COLLECTION"),
    ],
)
def test_what_to_evaluate_must_be_clear(
    arguments: tuple[str, ...], said: str, capsys: Capture
) -> None:
    assert lexvla("evaluate", "--index", "x", *arguments) == 2
    assert said in capsys.readouterr().err


def test_lines_that_are_not_beirs_are_told(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text(f"{HEADER}\nq1\td1\n")
    (beir / "corpus.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(InputError, match="must have 3 fields"):
        read_collection(str(beir))
    (entry,) = open_item_source(beir).entries()
    assert isinstance(entry, UnlistedItem)
    assert entry.reject.rule == "has no id"
