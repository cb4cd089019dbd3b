"""Files and queries for other engines, value by value."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export_fakes import WORDLESS, NumberEncoder, export, items, row, source
from indexer_fakes import VOCABULARY
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document
from lexvla_indexer.exports.base import Names, Row
from lexvla_indexer.exports.exporting import export_source
from lexvla_indexer.exports.formats import FORMATS, open_format
from lexvla_search import cli
from search_fakes import FakeEncoder, save_pictures

DOCUMENT = Document(
    "a b.png", "x/a b.png", 'a "red"\nheart\t\\', {"year": 2020, "tags": ["x", "é"]}
)
ROW = row("0:0.5 3:0.25")._replace(dense=[1.0, 0.0, 0.0])
UUID = str(uuid.uuid5(uuid.NAMESPACE_URL, "a b.png"))
METADATA = {"year": 2020, "tags": ["x", "é"]}
COMMON = {"text": 'a "red"\nheart\t\\', "uri": "x/a b.png"}

LINES: dict[str, list[Any]] = {
    "elasticsearch": [
        {"index": {"_index": "photos", "_id": "a b.png"}},
        {"lex": {"word0": 0.5, "word3": 0.25}, "vec": [1, 0, 0], **COMMON, "metadata": METADATA},
    ],
    "qdrant": [
        {
            "id": UUID,
            "vector": {"lex": {"indices": [0, 3], "values": [0.5, 0.25]}, "vec": [1, 0, 0]},
            "payload": {"document_id": "a b.png", **COMMON, "metadata": METADATA},
        }
    ],
    "milvus": [
        {
            "id": "a b.png",
            "lex": {"0": 0.5, "3": 0.25},
            "vec": [1, 0, 0],
            **COMMON,
            "metadata": METADATA,
        }
    ],
    # The form of https://docs.vespa.ai/en/reference/document-json-format.html
    "vespa": [
        {
            "put": "id:photos:photos::a b.png",
            "fields": {
                "lex": {"word0": 0.5, "word3": 0.25},
                "vec": [1, 0, 0],
                **COMMON,
                "metadata": {"year": "2020", "tags": '["x","é"]'},
            },
        }
    ],
    "weaviate": [
        {
            "class": "Photos",
            "id": UUID,
            "properties": {
                "document_id": "a b.png",
                **COMMON,
                "metadata": '{"year":2020,"tags":["x","é"]}',
                "lex": ["word0", "word3"],
            },
            "vectors": {"vec": [1, 0, 0]},
        }
    ],
}

QUERIES: dict[tuple[str, str], Any] = {
    ("elasticsearch", "lexical"): {
        "query": {
            "sparse_vector": {
                "field": "lex",
                "query_vector": {"word0": 0.5, "word3": 0.25},
                "prune": False,
            }
        },
        "size": 3,
    },
    ("elasticsearch", "dense"): {
        "query": {"knn": {"field": "vec", "query_vector": [1, 0, 0], "k": 3, "num_candidates": 3}},
        "size": 3,
    },
    ("qdrant", "lexical"): {
        "query": {"indices": [0, 3], "values": [0.5, 0.25]},
        "using": "lex",
        "limit": 3,
        "with_payload": True,
    },
    ("qdrant", "dense"): {
        "query": [1, 0, 0],
        "using": "vec",
        "limit": 3,
        "with_payload": True,
    },
    ("milvus", "lexical"): {
        "collectionName": "photos",
        "data": [{"0": 0.5, "3": 0.25}],
        "annsField": "lex",
        "limit": 3,
        "outputFields": ["text", "uri", "metadata"],
    },
    ("milvus", "dense"): {
        "collectionName": "photos",
        "data": [[1, 0, 0]],
        "annsField": "vec",
        "limit": 3,
        "outputFields": ["text", "uri", "metadata"],
    },
    ("vespa", "lexical"): {
        "yql": "select * from photos where true",
        "ranking": "lex",
        "input.query(lex)": {"cells": {"word0": 0.5, "word3": 0.25}},
        "hits": 3,
    },
    ("vespa", "dense"): {
        "yql": "select * from photos where true",
        "ranking": "vec",
        "input.query(vec)": [1, 0, 0],
        "hits": 3,
    },
    ("weaviate", "dense"): {
        "query": '{Get{Photos(limit:3,nearVector:{vector:[1.0,0.0,0.0],targetVectors:["vec"]})'
        "{document_id text uri metadata lex _additional{distance}}}}"
    },
}


def opened(name: str) -> Any:
    return open_format(name, Names("photos", "lex", "vec"))


@pytest.mark.parametrize("name", LINES, ids="to {}".format)
def test_a_documents_lines(name: str) -> None:
    lines = opened(name).lines(DOCUMENT, ROW)
    assert lines.endswith("\n")
    assert [json.loads(line) for line in lines.splitlines()] == LINES[name]


@pytest.mark.parametrize(("name", "leg"), QUERIES)
def test_a_querys_body(name: str, leg: Any) -> None:
    assert json.loads(opened(name).query(ROW, leg, 3)) == QUERIES[name, leg]


def test_a_script_for_postgresql() -> None:
    form = opened("pgvector")
    assert form.head(ROW) == (
        'COPY "photos" ("id", "text", "uri", "metadata", "lex", "vec") FROM stdin;\n'
    )
    assert form.lines(DOCUMENT, ROW) == (
        'a b.png\ta "red"\\nheart\\t\\\\\tx/a b.png\t{"year":2020,"tags":["x","é"]}'
        "\t{1:0.5,4:0.25}/12\t[1.0,0.0,0.0]\n"
    )
    assert form.tail() == "\\.\n"
    assert form.query(ROW, "lexical", 3) == (
        'SELECT "id", -("lex" <#> \'{1:0.5,4:0.25}/12\') AS score FROM "photos" '
        'ORDER BY "lex" <#> \'{1:0.5,4:0.25}/12\', "id" LIMIT 3;'
    )
    assert "\"vec\" <#> '[1.0,0.0,0.0]'" in form.query(ROW, "dense", 3)


@given(st.lists(st.floats(2**-100, 1, width=32), min_size=1, max_size=12))
def test_decimals_are_the_same_float32(weights: list[float]) -> None:
    values = np.array([weights], np.float32)
    (found,) = Row.of(Encoding(values, None, None, values), VOCABULARY)  # type: ignore[arg-type]
    assert np.array(json.loads(json.dumps(found.weights)), np.float32).tolist() == weights
    assert np.array(found.dense, np.float32).tolist() == weights
    assert all(len(repr(weight)) <= 14 for weight in found.weights)


def without_dense(words: str) -> Row:
    return row(words)._replace(dense=None)


@pytest.mark.parametrize("name", FORMATS, ids="to {}".format)
def test_an_encoder_without_dense_vectors(name: str) -> None:
    form = opened(name)
    if name == "weaviate":
        with pytest.raises(UnsupportedError, match="Weaviate takes no sparse vectors"):
            form.lines(DOCUMENT, without_dense("0:1"))
        with pytest.raises(UnsupportedError, match="ask by the leg dense"):
            form.query(ROW, "lexical", 3)
    else:
        words = without_dense("0:1")
        assert '"vec"' not in form.head(words) + form.lines(DOCUMENT, words)
    with pytest.raises(UnsupportedError, match="the model makes no dense vectors"):
        form.query(without_dense("0:1"), "dense", 3)


@pytest.mark.parametrize(
    ("name", "document", "rule"),
    [
        ("elasticsearch", Document("é" * 300), "ids of at most 512 bytes, not 600"),
        ("qdrant", Document("a", metadata={"n": 2**63}), "whole numbers of 64 bits"),
        ("milvus", Document("a", metadata={"n": -(2**63) - 1}), "whole numbers of 64 bits"),
        ("milvus", Document("a", text="é" * 40_000), "its text has 80,000 bytes; Milvus takes"),
        ("milvus", Document("a", metadata={"x": "y" * 70_000}), "its metadata has 70,008 bytes"),
        ("pgvector", Document("a", text="x\0"), "no text with a null character"),
        ("pgvector", Document("a", metadata={"x\0": 1}), "no text with a null character"),
        ("vespa", Document("a", text="x\x1b"), r"Vespa takes no text with U\+001B"),
        ("vespa", Document("a", metadata={"x": "\U0001ffff"}), r"no text with U\+1FFFF"),
    ],
)
def test_documents_that_an_engine_cannot_take(name: str, document: Document, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        opened(name).lines(document, ROW)


def test_documents_without_words() -> None:
    empty = row("none")
    with pytest.raises(InputError, match="Milvus takes no empty sparse vector"):
        opened("milvus").lines(DOCUMENT, empty)
    assert json.loads(opened("qdrant").lines(DOCUMENT, empty))["vector"] == {"vec": [0, 0, 0]}
    assert "\t{}/12\t" in opened("pgvector").lines(DOCUMENT, empty)
    assert '"lex":{}' in opened("vespa").lines(DOCUMENT, empty)


def test_long_rows_are_refused_by_pgvector() -> None:
    columns = list(range(16_001))
    wide = ROW._replace(columns=columns, weights=[0.5] * 16_001, width=20_000)
    with pytest.raises(InputError, match="has 16,001 words; pgvector takes at most 16,000"):
        opened("pgvector").lines(DOCUMENT, wide)
    with pytest.raises(UnsupportedError, match="at most 16,000 numbers, not 16,001"):
        opened("pgvector").head(ROW._replace(dense=[0.5] * 16_001))


@pytest.mark.parametrize(
    ("name", "names", "rule"),
    [
        *((name, {"lexical": "x", "dense": "x"}, "beside 'x'") for name in FORMATS),
        ("milvus", {"lexical": "text"}, "'text': cannot be a field's name beside 'text'"),
        ("pgvector", {"dense": "id"}, "beside 'id'"),
        ("weaviate", {"lexical": "document_id"}, "beside 'document_id'"),
        ("elasticsearch", {"lexical": "metadata.lex"}, "beside 'metadata'"),
        ("elasticsearch", {"lexical": "v", "dense": "v.d"}, "'v.d': cannot be a field's name"),
        ("elasticsearch", {"lexical": "_lex"}, "must begin with a letter"),
        ("elasticsearch", {"index": "Photos"}, "must be lower case"),
        ("elasticsearch", {"index": ".."}, "must be lower case"),
        ("qdrant", {"lexical": ""}, "must not be empty"),
        ("pgvector", {"index": 'a"; DROP TABLE b; --'}, "must be letters, digits and _"),
        ("pgvector", {"lexical": "x" * 64}, "at most 63"),
        ("vespa", {"index": "my-photos"}, "as the name of an index, must be letters"),
        ("weaviate", {"index": "1photos"}, "not begin with a digit"),
    ],
)
def test_names_that_an_engine_does_not_take(name: str, names: dict[str, str], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        open_format(name, Names(**names))


def test_names_in_one_object_are_allowed() -> None:
    form = open_format("elasticsearch", Names("photos.v2", "vectors.lex", "vectors.dense"))
    assert '"vectors.lex":{"word0":0.5' in form.lines(DOCUMENT, ROW)


def test_an_unknown_format() -> None:
    with pytest.raises(UnsupportedError, match="no format 'solr', only elasticsearch, qdrant"):
        open_format("solr")


# Files


@pytest.mark.parametrize("name", FORMATS, ids="to {}".format)
def test_a_file_has_each_document_once(name: str, tmp_path: Path) -> None:
    documents = items(20)
    _, widths, report = export(tmp_path / "out", documents, name)
    assert (widths.lexical, widths.dense) == (12, 3)
    lines = (tmp_path / "out").read_text("utf-8").splitlines()
    rejected = [each.item for each in report.rejected]
    assert rejected == ([WORDLESS] if name == "milvus" else [])
    count = len(documents) - len(rejected)
    assert report.added == count
    assert len(lines) == {"elasticsearch": 2 * count, "pgvector": count + 2}.get(name, count)
    beside = tmp_path / "out.vocabulary"
    assert beside.exists() == (name in ("qdrant", "milvus", "pgvector"))
    if beside.exists():
        assert Vocabulary.load(beside) == VOCABULARY
    left = {path.name for path in tmp_path.iterdir()} - {"items.jsonl", "out", "out.vocabulary"}
    assert not left


def test_shards_are_the_whole_each_item_once(tmp_path: Path) -> None:
    documents, form = items(20), opened("vespa")
    made = source(tmp_path, documents)
    lines = []
    for part in (1, 2, 3):
        out = tmp_path / str(part)
        _, report = export_source(made, NumberEncoder(), out, form, shard=(part, 3))
        assert report.added + report.skipped == len(documents)
        lines += out.read_text("utf-8").splitlines()
    export_source(made, NumberEncoder(), tmp_path / "all", form)
    assert sorted(lines) == sorted((tmp_path / "all").read_text("utf-8").splitlines())


def test_a_refused_document_leaves_the_rest_of_its_batch(tmp_path: Path) -> None:
    documents = items(5)
    documents[2] = Document("bad", text="0:1", metadata={"n": 2**70})
    _, _, report = export(tmp_path / "out", documents, "qdrant")
    assert [each.item for each in report.rejected] == ["bad"]
    points = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    found = {point["payload"]["document_id"] for point in points}
    assert found == {each.id for each in documents} - {"bad"}
    assert len(points) == report.added == 5


class FailingEncoder(NumberEncoder):
    """Fail at the second batch."""

    def __init__(self) -> None:
        self.batches = 0

    def encode_text(self, texts: list[str]) -> Encoding:
        self.batches += 1
        if self.batches == 2:
            raise OSError("no answer")
        return super().encode_text(texts)


def test_a_run_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    made = source(tmp_path, items(20))
    out = tmp_path / "new.qdrant"
    for before in (None, "old\n"):
        if before is not None:
            out.write_text(before)
        with pytest.raises(OSError, match=r"^no answer$"):
            export_source(made, FailingEncoder(), out, opened("qdrant"), batch_size=4)
        assert {path.name for path in tmp_path.iterdir()} == {
            "items.jsonl",
            *([] if before is None else [out.name]),
        }
    assert out.read_text() == "old\n"
    export_source(made, NumberEncoder(), out, opened("qdrant"))
    assert len(out.read_text().splitlines()) == 21


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    made, full = source(tmp_path, items(20)), tmp_path / "x.new"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{full}'"):
        export_source(made, NumberEncoder(), tmp_path / "x", opened("qdrant"))
    assert {path.name for path in tmp_path.iterdir()} == {"items.jsonl"}


class HalfDenseEncoder(NumberEncoder):
    """Make dense vectors of the first batch only."""

    batches = 0

    def encode_text(self, texts: list[str]) -> Encoding:
        made = super().encode_text(texts)
        self.batches += 1
        return made if self.batches == 1 else Encoding(made.lexical)


def test_dense_vectors_of_some_items_only(tmp_path: Path) -> None:
    made = source(tmp_path, items(20))
    with pytest.raises(UnsupportedError, match="dense vectors of some items only"):
        export_source(made, HalfDenseEncoder(), tmp_path / "x", opened("pgvector"), batch_size=4)


def test_a_source_without_items(tmp_path: Path) -> None:
    _, widths, report = export(tmp_path / "out", [], "pgvector")
    assert (widths.dense, report.added) == (None, 0)
    assert (tmp_path / "out").read_text() == ""


# The command


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    encoder = FakeEncoder()
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)
    return encoder


@pytest.mark.usefixtures("model")
def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = save_pictures(tmp_path / "photos"), tmp_path / "new" / "photos.ndjson"
    (folder / "bad.png").write_bytes(b"")
    command = ["encode", str(folder), "--out", str(out), "--format", "elasticsearch"]
    names = ["--index-name", "shop", "--lexical-field", "lex"]
    assert cli.main([*command, *names]) == 0
    said = f"4 added, 1 rejected; the vectors are in {out} (widths: lexical 6)\n"
    assert capsys.readouterr().out == said
    action, first = map(json.loads, out.read_text("utf-8").splitlines()[:2])
    assert action == {"index": {"_index": "shop", "_id": "apple.png"}}
    assert set(first) == {"lex", "text", "uri", "metadata"}
    assert cli.main([*command, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["added"], done["lexical"], done["dense"]) == (4, 6, None)
    assert done["rejects_file"] == f"{out}.rejected.jsonl"


@pytest.mark.usefixtures("model")
def test_the_command_prints_a_query(capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["encode", "--query", "red red blue"]
    assert cli.main(ask) == 0
    assert capsys.readouterr().out == "red   0.8944  column 0\nblue  0.4472  column 2\n"
    assert cli.main([*ask, "--json"]) == 0
    words = json.loads(capsys.readouterr().out)["words"]
    assert words[1] == {"word": "blue", "term": "▁blue", "column": 2, "weight": 0.4472136}
    assert cli.main([*ask, "--format", "qdrant", "-k", "5", "--lexical-field", "lex"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["query"] == {"indices": [0, 2], "values": [0.8944272, 0.4472136]}
    assert (body["using"], body["limit"]) == ("lex", 5)
    assert cli.main(["encode", "--query", "red parrot", "--format", "qdrant"]) == 0
    assert "no such word: parrot" in capsys.readouterr().err
    assert cli.main(["encode", "--query", "parrot", "--format", "qdrant"]) == 1
    assert "'parrot': the model knows no word of it" in capsys.readouterr().err
    assert cli.main([*ask, "--format", "qdrant", "--leg", "dense"]) == 1
    assert "the model makes no dense vectors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give a SOURCE and --out FILE, or --query TEXT"),
        (["photos"], "give a SOURCE and --out FILE"),
        (["photos", "--query", "red"], "--query goes without SOURCE and --out"),
        (["--query", "red", "--out", "x.npz"], "--query goes without SOURCE and --out"),
        (["--query", "red", "--shard", "1/4"], "--shard does not go with --query"),
        (["--query", "red", "--text-field", "t"], "--text-field does not go with --query"),
        (["--query", "red", "--exclude", "*.gif"], "--exclude does not go with --query"),
        (["--query", "red", "--max-pixels", "9"], "--max-pixels does not go with --query"),
        (["--query", "red", "--batch-size", "9"], "--batch-size does not go with --query"),
        (["--query", "red", "--strict"], "--strict does not go with --query"),
        (["--query", "red", "--split", "x"], "--split does not go with --query"),
        (["q.tsv", "--out", "x.jsonl", "--no-exif"], "--no-exif does not go with queries (.tsv)"),
        (["q.tsv", "--out", "x.jsonl", "--shard", "1/2"], "--shard does not go with queries"),
        (["--query", "red", "--leg", "dense"], "--leg goes with --query and --format"),
        (["photos", "--out", "x", "--format", "qdrant", "-k", "3"], "-k goes with --query"),
        (["photos", "--out", "x.npz", "--dense-field", "d"], "--dense-field goes with --format"),
        (["--query", "red", "--format", "qdrant", "--json"], "--json does not go with"),
        (["q.tsv", "--out", "x", "--format", "qdrant"], "--format does not go with queries"),
        (
            ["photos", "--out", "x", "--format", "milvus", "--lexical-field", "text"],
            "'text': cannot be a field's name beside 'text'",
        ),
        (["photos", "--out", ".", "--format", "qdrant"], "--out must name a file, and . is a"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["encode", *arguments]) == 2
    assert complaint in capsys.readouterr().err
