"""Search over the embedded engine, against a plain dot product."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import sparse

from lexvla.errors import InputError, VocabularyMismatchError
from lexvla_indexer import Document, open_index
from lexvla_indexer.base import Index
from lexvla_search import LegScore, Query, Searcher
from lexvla_search.encoded_query import encode_query
from search_fakes import PICTURES, FakeEncoder, build_index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with build_index(tmp_path / "photos.lex", tmp_path / "photos", FakeEncoder()) as made:
        yield made


def expected(query: Query) -> list[tuple[str, float]]:
    encoder = FakeEncoder()
    items = encoder.encode_image(list(PICTURES.values()))
    scores = (encode_query(query, encoder).encoding.lexical @ items.lexical.T).toarray()[0]
    found = [(name, float(s)) for name, s in zip(PICTURES, scores, strict=True) if s > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize(
    "query",
    [
        Query(text="red"),
        Query(text="blue red"),
        Query(text="black white green"),
        Query(image=PICTURES["apple"]),
        Query(text="green", image=PICTURES["flag"]),
    ],
)
def test_hits_are_the_best_products(index: Index, query: Query) -> None:
    hits = Searcher(FakeEncoder(), index).search(query, k=10, explain=True)
    assert [(hit.id, pytest.approx(hit.score, rel=1e-5)) for hit in hits] == expected(query)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    for hit in hits:
        assert hit.explanation is not None
        assert hit.explanation.total() == pytest.approx(hit.score, rel=1e-5)
        assert hit.lexical is not None
        assert (hit.lexical.score, hit.lexical.rank) == (hit.score, hit.rank)
        assert hit.codes is None
        assert hit.dense is None
        assert hit.document.metadata["label"] == hit.label == f"a {hit.id}"


def test_an_image_finds_itself(index: Index) -> None:
    for name, picture in PICTURES.items():
        (hit,) = Searcher(FakeEncoder(), index).search(Query(image=picture), k=1)
        assert hit.id == name
        assert hit.score == pytest.approx(1)
        assert hit.explanation is None


def test_a_hit_builds_no_matrix_of_its_own(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher, build = Searcher(FakeEncoder(), index), sparse.csr_array.__init__
    made: list[object] = []

    def counted(self: sparse.csr_array, *given: Any, **options: Any) -> None:
        made.append(self)
        build(self, *given, **options)

    monkeypatch.setattr(sparse.csr_array, "__init__", counted)
    counts = []
    for k in (1, 3):
        made.clear()
        hits = searcher.search(Query(text="black white green"), k=k, explain=True)
        assert len(hits) == k
        counts.append(len(made))
    assert counts[0] == counts[1] < 8


def test_matches_name_the_patch(index: Index) -> None:
    (hit,) = Searcher(FakeEncoder(), index).search(Query(text="red"), k=1, explain=True)
    assert hit.id == "apple"
    assert hit.explanation is not None
    assert [(m.word, m.patch) for m in hit.explanation.matches] == [("red", 1 * 4 + 2)]


def test_k(index: Index) -> None:
    searcher = Searcher(FakeEncoder(), index)
    every = searcher.search(Query(text="black"), k=100)
    assert [hit.id for hit in searcher.search(Query(text="black"), k=2)] == [
        hit.id for hit in every[:2]
    ]
    with pytest.raises(InputError, match="the number of hits must be at least 1"):
        searcher.search(Query(text="red"), k=0)


def test_explain_agrees_with_search(index: Index) -> None:
    searcher = Searcher(FakeEncoder(), index)
    query = Query(text="red black")
    for hit in searcher.search(query, explain=True):
        assert searcher.explain(query, hit.id) == hit


def test_explain_what_was_not_found(index: Index) -> None:
    searcher = Searcher(FakeEncoder(), index)
    hit = searcher.explain(Query(text="red"), "snow")
    assert (hit.score, hit.rank, hit.lexical) == (0, None, LegScore(0.0, None))
    assert hit.explanation is not None
    assert hit.explanation.matches == ()
    with pytest.raises(InputError, match="'ghost': the index has no such id"):
        searcher.explain(Query(text="red"), "ghost")


def test_filter(index: Index) -> None:
    searcher = Searcher(FakeEncoder(), index)
    every = searcher.search(Query(text="black red"), explain=True)
    assert len(every) > 1
    query = Query(text="black red", filter=f"not id = {every[0].id}")
    hits = searcher.search(query, explain=True)
    assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in every[1:]]
    assert [hit.rank for hit in hits] == list(range(1, len(every)))
    for hit in hits:
        assert searcher.explain(query, hit.id) == hit
    kept_out = searcher.explain(query, every[0].id)
    assert (kept_out.rank, kept_out.score) == (None, pytest.approx(every[0].score))
    assert searcher.search(Query(text="red", filter="label = nothing")) == []


def test_hits_go_into_json(index: Index) -> None:
    (hit,) = Searcher(FakeEncoder(), index).search(Query(text="red"), k=1, explain=True)
    data = json.loads(json.dumps(hit.to_dict()))
    assert set(data) == {
        *("id", "score", "relevance", "rank", "lexical", "codes", "dense", "text"),
        *("document", "explanation", "copies"),
    }
    assert set(data["document"]) == {"id", "uri", "text", "metadata"}
    assert data["lexical"] == {"score": data["score"], "rank": 1}


def test_a_hit_is_one_line(index: Index) -> None:
    (hit,) = Searcher(FakeEncoder(), index).search(Query(text="red"), k=1, explain=True)
    assert repr(hit) == f"<Hit 1. {hit.id!r} {hit.score:.4f} {hit.label!r}>"
    wordy = replace(hit, document=Document("a", text="a\nb " * 50), rank=None)
    assert repr(wordy).startswith(f"<Hit {hit.id!r} {hit.score:.4f} 'a b a b")
    assert len(repr(wordy)) < 120
    first = Searcher(FakeEncoder(), index).search("", k=1)[0]  # of a list, without a score
    assert repr(first) == f"<Hit 1. {first.id!r} {first.label!r}>"


def test_searchers_indexes_and_answers_say_what_they_are(index: Index) -> None:
    searcher = Searcher(FakeEncoder(), index)
    shown = f"<EmbeddedIndex {str(index)!r}, model 'fake'>"
    assert repr(index) == shown
    assert repr(searcher) == f"<Searcher of {shown} by 'fake'>"
    answer = searcher.answer("red", k=2)
    assert repr(answer) == f"<Answer: 2 hits of {answer.total}, best {answer.hits[0]!r}>"
    assert repr(searcher.answer("zebra")).startswith("<Answer: 0 hits of ")


def test_texts_of_many_queries_are_encoded_in_one_call(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = ["red", "blue gren", Query("red", k=1), Query(terms={"green": 1.0}), "zebra"]
    alone = [Searcher(FakeEncoder(), index).search(query) for query in queries]
    calls, encode = [], FakeEncoder.encode_text

    def counted(self: FakeEncoder, texts: list[str]) -> Any:
        calls.append(texts)
        return encode(self, texts)

    monkeypatch.setattr(FakeEncoder, "encode_text", counted)
    searcher = Searcher(FakeEncoder(), index)
    assert searcher.search_many(queries) == alone
    assert len(calls) == 1

    def refused(self: FakeEncoder, texts: list[str]) -> Any:
        if len(texts) > 1:
            raise InputError("blue", "is refused in company")
        return counted(self, texts)

    monkeypatch.setattr(FakeEncoder, "encode_text", refused)
    assert searcher.search_many(queries) == alone


def test_a_query_is_a_text_or_a_query(index: Index) -> None:
    searcher = Searcher(FakeEncoder(), index)
    (hit,) = searcher.search("red", k=1)
    assert searcher.explain("red", hit.id).score == hit.score
    for ask in (searcher.search, lambda query: searcher.explain(query, hit.id)):
        with pytest.raises(TypeError, match=r"a text or a Query, .* not Image"):
            ask(Image.new("RGB", (4, 4)))  # type: ignore[operator]


def test_another_vocabulary_is_refused(index: Index) -> None:
    stranger = FakeEncoder(words=("red", "green", "blue", "yellow", "white", "noir"))
    with pytest.raises(VocabularyMismatchError) as caught:
        Searcher(stranger, index)
    assert index.vocabulary.sha256[:12] in str(caught.value)
    assert stranger.vocabulary.sha256[:12] in str(caught.value)


def test_another_model_is_refused(index: Index) -> None:
    with pytest.raises(VocabularyMismatchError, match="the model 'fake'; this is the model 'new'"):
        Searcher(FakeEncoder(name="new"), index)


def test_an_index_of_no_named_model_takes_any(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    address = str(tmp_path / "plain.lex")
    with open_index(address, create=True, vocabulary=encoder.vocabulary) as index:
        assert Searcher(encoder, index).search(Query(text="red")) == []
