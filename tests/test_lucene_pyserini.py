"""Our index in plain Pyserini, and an index of Anserini's own indexer in ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer_fakes import QUERY, VOCABULARY, documents, encode, found, random_rows
from lexvla.errors import UnknownDocumentError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, open_index
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.lucene import LuceneIndex, pyserini_imports
from lexvla_indexer.lucene.jvm import java_class, start_java
from lexvla_search import cli

pytestmark = pytest.mark.java

IDS = [f"d{i:02}" for i in range(60)]
WEIGHTS = {"word0": 200, "word4": 100, "word9": 50}


class Encoder:
    """Give Pyserini a query's weights."""

    def encode(self, query: str) -> dict[str, int]:
        return json.loads(query)


def rows():
    return encode(random_rows(np.random.default_rng(3), len(IDS)))


def test_pyserini_gives_the_same_scores(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pyserini_imports():
        from pyserini.search.lucene import LuceneImpactSearcher
    assert "OPENAI_API_KEY" not in os.environ
    with open_index(f"lucene:{tmp_path}", create=True, vocabulary=VOCABULARY) as index:
        index.add(documents(IDS), rows())
        index.add([Document("\U0001f600", text="t", metadata={"n": 1})], encode([{0: 1.0}]))
        index.commit()
        step = index.info()["quantization"]["lexical"]["top"] / 255
        query = encode([{int(t[4:]): w / 200 for t, w in WEIGHTS.items()}], patches=False)
        ours = found(index, query, 100)
    searcher = LuceneImpactSearcher(str(tmp_path), Encoder())
    theirs = searcher.search(json.dumps(WEIGHTS), 100)
    assert {hit.docid for hit in theirs} == {name for name, _ in ours}
    scores = dict(ours)
    for hit in theirs:  # Pyserini lowers equal scores a little, so that they stay in order
        assert hit.score * step / 200 == pytest.approx(scores[hit.docid], rel=1e-4)
    assert [hit.docid for hit in theirs] == [name for name, _ in ours]
    assert json.loads(searcher.doc("\U0001f600").raw()) == {
        "id": "\U0001f600", "contents": "t", "uri": "", "metadata": {"n": 1},
    }  # fmt: skip


def test_a_key_that_is_set_stays(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    with pyserini_imports():
        assert os.environ["OPENAI_API_KEY"] == "mine"
    assert os.environ["OPENAI_API_KEY"] == "mine"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return an index that Anserini's indexer built of what `Encoding.to_jsonl` wrote."""
    folder = tmp_path_factory.mktemp("anserini")
    (folder / "jsonl").mkdir()
    rows().to_jsonl(folder / "jsonl" / "rows.jsonl", IDS, VOCABULARY)
    start_java()
    options = {
        "collection": "JsonVectorCollection",
        "generator": "DefaultLuceneDocumentGenerator",
        "input": str(folder / "jsonl"),
        "index": str(folder / "index"),
        "threads": "1",
    }
    given = [part for name, value in options.items() for part in (f"-{name}", value)]
    java_class("io.anserini.index.IndexCollection").main([*given, "-impact", "-pretokenized"])
    return folder / "index"


def expected(k: int) -> list[tuple[str, float]]:
    impacts = np.maximum(np.rint(rows().lexical.toarray() * 100), 1) * (
        rows().lexical.toarray() > 0
    )
    scores = dict(zip(IDS, (impacts @ QUERY.lexical.toarray()[0]).tolist(), strict=True))
    best = sorted(scores, key=lambda name: (-scores[name], name))
    return [(name, scores[name]) for name in best if scores[name] > 0][:k]


def test_an_index_of_anserini_is_searched(theirs):
    with LuceneIndex(theirs, vocabulary=VOCABULARY) as index:
        bound = index.bound(QUERY)[0]
        answer = found(index)
        assert [name for name, _ in answer] == [name for name, _ in expected(100)]
        for (_, score), (_, exact) in zip(answer, expected(100), strict=True):
            assert score == pytest.approx(exact, abs=bound)
        assert index.count() == len(IDS)
        assert index.fingerprints(["d00", "x"]) == {"d00": ""}
        assert index.verify() == []
        assert index.documents(["d00", "d01"]) == [Document("d00"), Document("d01")]
        with pytest.raises(UnknownDocumentError):
            index.documents(["d00", "x"])
        assert (index.is_writable, index.has_rows) == (False, False)
        assert index.info()["writer_version"] == "another program"
        assert index.model is None
    hundredths = ImpactQuantizer(2.55, 0.01, 2.55)  # as `Encoding.to_jsonl` makes them
    with LuceneIndex(theirs, vocabulary=VOCABULARY, quantizer=hundredths) as index:
        assert found(index)[0][1] == pytest.approx(answer[0][1] / 100)


def test_what_an_index_of_anserini_lacks_is_named(theirs):
    with LuceneIndex(theirs, vocabulary=VOCABULARY) as index:
        for use in (
            lambda: index.fetch(["d00"]),
            lambda: index.vectors(["d00"]),
            lambda: index.delete(["d00"]),
            lambda: index.add(documents("a"), encode([{0: 1.0}])),
            lambda: index.search(QUERY, filter="year = 2020"),
            index.compact,
        ):
            with pytest.raises(UnsupportedError, match="another program built this index"):
                use()
        with pytest.raises(UnsupportedError, match="has no codes leg"):
            index.search(QUERY, leg="codes")
    with pytest.raises(UnsupportedError, match="another program"):
        LuceneIndex(theirs, create=True)
    message = r"names no vocabulary; .* vocabulary.json"
    with LuceneIndex(theirs) as index, pytest.raises(UnsupportedError, match=message):
        index.search(QUERY)


def test_a_vocabulary_saved_beside_an_index_of_anserini(theirs, capsys):
    VOCABULARY.save(theirs / "vocabulary.json")
    try:
        given = ["word0", "--no-model", "--index", f"lucene:{theirs}", "-k", "1"]
        assert cli.main(["search", *given]) == 0
        with LuceneIndex(theirs) as index:
            best = index.search(encode([{0: 1.0}], patches=False), k=1)[0]
        assert capsys.readouterr().out.split() == ["1", f"{best.scores[0]:.3f}", *best.ids * 2]
        with open_index(f"lucene:{theirs}") as index:
            assert index.vocabulary == VOCABULARY
            assert found(index, k=1)[0][0] == expected(1)[0][0]
        with LuceneIndex(theirs, vocabulary=Vocabulary("ab")) as index:
            assert index.vocabulary.terms == ("a", "b")  # given ones win
    finally:
        (theirs / "vocabulary.json").unlink()
