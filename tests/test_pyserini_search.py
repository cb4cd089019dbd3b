"""Pyserini's own searcher with our query encoder, against sums of whole numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from indexer_fakes import WORDS, documents, encode, random_rows
from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import open_index
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.lucene import LuceneIndex, pyserini_imports
from lexvla_search.pyserini import LexVLAQueryEncoder, main

pytestmark = pytest.mark.java

IDS = [f"d{i:02}" for i in range(80)]
TERMS = ["everywhere", "red heart", "a|b", "AND", "x^2", "\\"]
VOCABULARY = Vocabulary([*TERMS, *(f"word{i}" for i in range(WORDS - len(TERMS)))])
QUERIES = ["0.5 0 0 0 0 0 0.75", "0 1", "0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.1 0.1 0.1 0.1 0.1"]


class Numbers:
    """Read the weights of a query from its text."""

    name = "numbers"
    vocabulary = VOCABULARY

    def encode_text(self, texts: list[str]) -> Encoding:
        rows = np.zeros((len(texts), WORDS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            weights = np.array(text.split(), np.float32)
            row[: len(weights)] = weights / np.linalg.norm(weights)
        return Encoding(sparse.csr_array(rows))

    def encode_image(self, images: Any) -> Encoding:
        raise NotImplementedError


def rows() -> Encoding:
    """Return rows that all have the first word, with different weights."""
    made = random_rows(np.random.default_rng(5), len(IDS))
    return encode([{**row, 0: (1 + i % 8) / 8} for i, row in enumerate(made)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "ours"
    with open_index(f"lucene:{folder}", create=True, vocabulary=VOCABULARY) as index:
        index.add(documents(IDS), rows())
        index.commit()
    return folder


@pytest.fixture(scope="module")
def searcher() -> Iterator[Callable[..., Any]]:
    with pyserini_imports():
        from pyserini.search.lucene import LuceneImpactSearcher
    opened = []

    def search(folder: Path, **options: Any) -> Any:
        made = LuceneImpactSearcher(str(folder), LexVLAQueryEncoder(Numbers()), **options)
        opened.append(made)
        return made

    yield search
    for each in opened:
        each.close()


def expected(text: str, without: tuple[int, ...] = ()) -> list[tuple[str, float]]:
    stored = rows().lexical
    impacts = ImpactQuantizer.fit(stored).quantize(stored).toarray().astype(np.int64)
    query = Numbers().encode_text([text]).lexical.toarray()[0].astype(np.float64)
    whole = np.where(query > 0, np.maximum(np.rint(query * 2048), 1), 0).astype(np.int64)
    whole[list(without)] = 0
    pairs = [pair for pair in zip(IDS, (impacts @ whole).tolist(), strict=True) if pair[1] > 0]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def answer(searcher: Any, text: str) -> list[tuple[str, float]]:
    return [(hit.docid, round(hit.score)) for hit in searcher.search(text, len(IDS))]


@pytest.mark.parametrize("text", QUERIES)
def test_ids_and_scores_are_those_of_whole_numbers(place, searcher, text):
    assert answer(searcher(place, min_idf=-1), text) == expected(text)


def test_pyserini_drops_words_of_every_document_unless_told(place, searcher):
    kept, dropped = expected(QUERIES[0]), expected(QUERIES[0], without=(0,))
    assert [name for name, _ in kept] != [name for name, _ in dropped]
    assert answer(searcher(place), QUERIES[0]) == dropped
    assert answer(searcher(place, min_idf=-1), QUERIES[0]) == kept


def test_scores_over_both_scales_are_those_of_our_engine(place, searcher):
    scale = json.loads((place / "quantization.json").read_text())["lexical"]["scale"]
    with LuceneIndex(place) as index:
        query = Numbers().encode_text([QUERIES[2]])
        (ours,) = index.search(query, len(IDS))
        found = dict(answer(searcher(place, min_idf=-1), QUERIES[2]))
        assert found.keys() == set(ours.ids)
        for name, score in zip(ours.ids, ours.scores, strict=True):
            assert found[name] / scale / 2048 == pytest.approx(score, abs=index.bound(query)[0])


def test_several_threads_give_the_same(place, searcher):
    one = searcher(place, min_idf=-1)
    together = one.batch_search(QUERIES, ["a", "b", "c"], k=len(IDS), threads=2)
    for name, text in zip("abc", QUERIES, strict=True):
        assert [(hit.docid, round(hit.score)) for hit in together[name]] == expected(text)


def test_the_command_encodes_its_topics_in_batches(place, tmp_path, monkeypatch):
    asked: list[list[str]] = []

    class Counting(Numbers):
        def encode_text(self, texts: list[str]) -> Encoding:
            asked.append(texts)
            return super().encode_text(texts)

    monkeypatch.setattr("lexvla.model.LexVLA.from_pretrained", lambda *_: Counting())
    for name in ("PATH", "JAVA_HOME", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the launcher changes all three
    topics, run = tmp_path / "topics.tsv", tmp_path / "run.trec"
    topics.write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(QUERIES)))
    given = ["--topics", str(topics), "--index", str(place), "--output", str(run)]
    assert main(["search.lucene", "--impact", "--encoder", "lexvla", *given]) == 0
    assert asked == [QUERIES]
    found: dict[str, list[tuple[str, float]]] = {}
    for line in run.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        found.setdefault(query, []).append((document, round(float(score))))
    assert found == {str(n): expected(text) for n, text in enumerate(QUERIES)}


def test_the_quantisation_lies_beside_the_index(place):
    kept = ImpactQuantizer.load(place / "quantization.json")
    assert kept == {leg: ImpactQuantizer.fit(getattr(rows(), leg)) for leg in ("lexical", "codes")}
    with LuceneIndex(place) as index:
        fact = index.info()["quantization"]["lexical"]
        assert (fact["bits"], fact["top"], fact["scale"]) == (8, 1.0, 255.0)
        assert index.verify() == []


def test_an_index_of_anserini_is_read_by_the_files_beside_its_vectors(tmp_path):
    vectors, built = tmp_path / "vectors", tmp_path / "built"
    vectors.mkdir()
    plain = Vocabulary(f"word{i}" for i in range(WORDS))
    rows().to_jsonl(vectors / "v.jsonl", IDS, plain, scale=200)
    options = "--collection JsonVectorCollection --generator DefaultLuceneDocumentGenerator"
    given = [*options.split(), "--threads", "1", "--impact", "--pretokenized"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/usr/bin")  # the launcher changes all three
        patch.setenv("JAVA_HOME", "")
        patch.setenv("OPENAI_API_KEY", "")
        done = main(["index.lucene", "--input", str(vectors), "--index", str(built), *given])
    assert done == 0
    plain.save(built / "vocabulary.json")
    exact = rows().lexical
    quantizer = ImpactQuantizer.of_scale(200, exact)
    ImpactQuantizer.save(built / "quantization.json", {"lexical": quantizer})
    query = Encoding(Numbers().encode_text([QUERIES[2]]).lexical)
    products = (exact.astype(np.float64) @ query.lexical.astype(np.float64).T).toarray()[:, 0]
    with open_index(f"lucene:{built}") as index:
        assert index.info()["quantization"] == {
            "lexical": {"bits": 8, "scale": 200.0, "top": 255 / 200}
        }
        (found,) = index.search(query, len(IDS))
        assert len(found.ids) == len(IDS)
        for name, score in zip(found.ids, found.scores, strict=True):
            exactly = products[IDS.index(name)]
            assert score == pytest.approx(exactly, abs=index.bound(query)[0])
            assert score == pytest.approx(exactly, rel=0.02)
    (built / "quantization.json").write_text("{}\n{")
    with pytest.raises(IndexCorruptError, match="holds no quantisers"):
        open_index(f"lucene:{built}")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search.nothing"], 2, "Pyserini has no command search.nothing"),
        (["no.such.thing"], 2, "Pyserini has no command no.such.thing"),
    ],
)
def test_unknown_commands(arguments, code, message, capsys, monkeypatch):
    for name in ("PATH", "JAVA_HOME", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "")
    assert main(arguments) == code
    assert message in capsys.readouterr().err


def test_encoders_that_nobody_knows_are_named(place, tmp_path, capsys, monkeypatch):
    for name in ("PATH", "JAVA_HOME", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "")
    (tmp_path / "q.tsv").write_text("1\tred\n")
    given = ["--topics", str(tmp_path / "q.tsv"), "--index", str(place), "--encoder", "nobody"]
    given += ["--output", str(tmp_path / "run")]
    assert main(["search.lucene", "--impact", *given]) == 1
    assert "'nobody': is neither a file of encoded queries" in capsys.readouterr().err
