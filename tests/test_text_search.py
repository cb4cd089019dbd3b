"""Documents' texts as a fourth leg of searches, on every engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import elastic_fakes
import opensearch_fakes
from indexer_fakes import VOCABULARY, encode, random_rows
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla.known_words import KnownWords
from lexvla_indexer import Document, ElasticIndex, OpenSearchIndex, open_index
from lexvla_indexer.base import Index
from lexvla_search import Query, ReciprocalRank, Searcher, Weighted, save_fusion
from lexvla_search.fusion import FUSIONS
from lexvla_search.typed_words import telling

COUNT = 160  # over 10 times a depth of 15
RNG = np.random.default_rng(23)
ROWS = random_rows(RNG, COUNT)
CAPTIONS = [" ".join(RNG.choice(["red", "heart", "sun", "moon"], 3)) for _ in range(COUNT)]
CAPTIONS[7], CAPTIONS[8] = "A toucan.", ""
NAMES = [f"d{i:03}" for i in range(COUNT)]
FILTER = "even = true"
QUERY = "word0 word4 word9 red heart"


class WordEncoder:
    """Read words of the vocabulary, with all legs that the index has."""

    name = "words"
    vocabulary = VOCABULARY
    known_words = KnownWords(VOCABULARY.terms)

    def encode_text(self, texts: list[str]) -> Encoding:
        known = [[w for w in text.split() if w in self.known_words] for text in texts]
        rows = [{VOCABULARY.id(w): 1 / len(words) for w in words} for words in known]
        return encode(rows, patches=False)

    def encode_image(self, images: list[object]) -> Encoding:
        raise NotImplementedError


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        pytest.param("lucene", marks=pytest.mark.java),
        pytest.param("elastic", marks=pytest.mark.elasticsearch),
        pytest.param("opensearch", marks=pytest.mark.opensearch),
    ],
)
def index(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Index]:
    place = tmp_path_factory.mktemp("texts") / "i"
    servers = {
        "elastic": (elastic_fakes, ElasticIndex),
        "opensearch": (opensearch_fakes, OpenSearchIndex),
    }
    server, engine = servers.get(request.param, (None, None))
    with server.cleaned() if server else nullcontext():
        if server:
            made = engine(server.address(place), True, VOCABULARY, "words", shards=2)
        else:
            address = f"lucene:{place}" if request.param == "lucene" else str(place)
            made = open_index(address, create=True, vocabulary=VOCABULARY, model="words")
        with made:
            kept = [
                Document(name, text=caption, metadata={"even": i % 2 == 0})
                for i, (name, caption) in enumerate(zip(NAMES, CAPTIONS, strict=True))
            ]
            for part in (slice(0, 100), slice(100, None)):
                made.add(kept[part], encode(ROWS)[part])
                made.commit()
            yield made


def test_a_word_that_only_a_caption_has(index: Index) -> None:
    searcher = Searcher(WordEncoder(), index)
    answer = searcher.answer(Query(text="a photo of a toucan"), explain=True)
    assert [word.word for word in answer.unknown] == ["toucan"]
    assert (answer.legs, str(answer.fusion)) == (("text",), "text")
    (hit,) = answer.hits
    assert hit.id == "d007"
    assert 0.4 < hit.score < 1
    assert (hit.text.score, hit.text.rank, hit.lexical) == (hit.score, 1, None)
    (word,) = hit.explanation.text
    assert word.word == "toucan"
    assert word.part == pytest.approx(hit.score, rel=1e-5)
    assert hit.to_dict()["explanation"]["text"] == [
        {"word": "toucan", "score": word.score, "part": word.part}
    ]
    assert f"[text: toucan] {hit.score:.3f}" in hit.explanation.summary(3)
    assert "toucan" in str(hit.explanation)
    (other,) = searcher.search(Query(text=QUERY, filter="id = d008"), explain=True)
    assert "[text" not in other.explanation.summary(3)  # its text is empty
    assert searcher.explain(Query(text="toucan"), "d007").score == pytest.approx(hit.score)
    lost = searcher.explain(Query(text="toucan"), "d000")
    assert (lost.score, lost.rank, lost.explanation.text) == (0, None, ())
    # Nor does it find what no document has, or what other legs alone are asked for.
    for query in (
        Query(text="zebra"),
        Query(text="toucan", legs=("lexical",)),
        Query(text="toucan", fusion="lexical"),
        Query(text="toucan", filter=FILTER),
        Query(text="toucan", ban=["word0"], fusion="codes"),
    ):
        answer = searcher.answer(query)
        assert answer.hits == []
        assert [word.word for word in answer.unknown] == [query.text]


def test_the_default_asks_by_words_vectors_and_texts(index: Index) -> None:
    searcher = Searcher(WordEncoder(), index)
    legs = [leg for leg in index.legs() if leg != "codes"]
    answer = searcher.answer(Query(text=QUERY), explain=True)
    assert list(answer.legs) == legs
    assert legs[-1] == "text"
    best = answer.hits[0]
    parts = {part.leg: part for part in best.explanation.parts}
    assert parts["text"].part == pytest.approx(parts["text"].score / len(legs))
    assert "text" not in searcher.answer(Query(terms={"word0": 1.0})).legs
    with pytest.raises(UnsupportedError, match="the query has no text leg"):
        searcher.search(Query(terms={"word0": 1.0}, legs=("text",)))


FUSED = [
    None,
    *FUSIONS,
    Weighted({"lexical": 0.3, "text": 0.7}, depth=15),
    Weighted({"lexical": 0.3, "codes": 0.2, "text": 0.5}, "minmax", depth=15),
    ReciprocalRank(weights={"lexical": 1.0, "text": 0.5}, depth=15),
]


@pytest.mark.parametrize("fusion", FUSED, ids=str)
def test_parts_sum_to_the_score(index: Index, fusion) -> None:
    if fusion == "dense" and "dense" not in index.legs():
        pytest.skip("the engine does not search dense vectors")
    searcher = Searcher(WordEncoder(), index)
    for chosen in (None, FILTER):
        hits = searcher.search(Query(text=QUERY, fusion=fusion, k=30, filter=chosen), explain=True)
        assert len(hits) == 30
        for hit in hits:
            explained = hit.explanation
            assert explained.score == hit.score
            assert explained.total() == pytest.approx(hit.score, rel=1e-9, abs=1e-12)
            for leg in explained.parts:
                if leg.leg not in ("lexical", "text"):
                    continue
                own = explained.text if leg.leg == "text" else explained.matches
                if own:
                    words = math.fsum(match.part for match in own)
                    assert words == pytest.approx(leg.part, rel=1e-9, abs=1e-12)
                if leg.leg == "text" and leg.score:
                    total = math.fsum(match.score for match in own)
                    assert total == pytest.approx(leg.score, rel=1e-5)
            words = {match.word for match in explained.text}
            if any(leg.leg == "text" for leg in explained.parts):
                assert words == {"red", "heart"} & set(hit.document.text.split())


@pytest.mark.parametrize("fusion", [None, "text", *FUSED[-3:]], ids=str)
def test_pages_neither_repeat_nor_lose_a_hit(index: Index, fusion) -> None:
    searcher = Searcher(WordEncoder(), index)
    query = " ".join([*VOCABULARY.terms, "red heart sun moon toucan"])
    whole = searcher.search(Query(text=query, fusion=fusion, k=COUNT))
    expected = [name for name, text in zip(NAMES, CAPTIONS, strict=True) if text]
    assert sorted(hit.id for hit in whole) == (expected if fusion == "text" else NAMES)
    assert [hit.rank for hit in whole] == list(range(1, len(whole) + 1))
    for size in (20, 7, 1) if fusion is None else (20,):
        pages = [
            hit
            for offset in range(0, COUNT, size)
            for hit in searcher.search(Query(text=query, fusion=fusion, k=size, offset=offset))
        ]
        assert [(hit.id, hit.score) for hit in pages] == [(hit.id, hit.score) for hit in whole]


def test_bans_hold_for_texts(index: Index) -> None:
    searcher = Searcher(WordEncoder(), index)
    query = Query(text="red moon", ban=["word0"], require=["word1"], k=COUNT)
    found = [hit.id for hit in searcher.search(query)]
    rows = dict(zip(NAMES, ROWS, strict=True))
    captions = dict(zip(NAMES, CAPTIONS, strict=True))
    assert sorted(found) == [
        name
        for name, row in rows.items()
        if 1 in row and 0 not in row and {"red", "moon"} & set(captions[name].split())
    ]


def test_deleted_and_changed_texts(tmp_path: Path, index: Index) -> None:
    addresses = {
        "EmbeddedIndex": str,
        "LuceneIndex": "lucene:{}".format,
        "ElasticIndex": elastic_fakes.address,
        "OpenSearchIndex": opensearch_fakes.address,
    }
    address = addresses[type(index).__name__](tmp_path / "i")
    with open_index(address, create=True, vocabulary=VOCABULARY, model="words") as own:
        rows = encode([{0: 1.0}] * 3)
        own.add([Document("a"), Document("b"), Document("c", text="--")], rows)
        own.commit()
        assert "text" not in own.legs()
        own.add([Document("a", text="A toucan."), Document("b", text="Toucan!")], rows[:2])
        own.commit()
        assert "text" in own.legs()
        assert own.search_text("toucan").ids == ["b", "a"]
        own.add([Document("b", text="a heart")], rows[:1])
        own.delete(["c"])
        own.commit()
        assert own.search_text("toucan").ids == ["a"]
        assert own.search_text("heart toucan", filter="id = b").ids == ["b"]
        assert own.fetch(["a", "b"]).documents[1].text == "a heart"
        own.delete(["a"])
        own.commit()
        assert own.search_text("toucan").ids == []
        assert own.text_parts("heart", ["b"])[0].keys() == {"heart"}
        own.delete(["b"])
        own.commit()
        assert own.search_text("heart").ids == []


def test_a_fitted_fusion_weighs_texts(tmp_path: Path) -> None:
    with open_index(str(tmp_path / "i"), create=True, vocabulary=VOCABULARY, model="words") as own:
        own.add([Document("a", text="toucan"), Document("b")], encode([{1: 1.0}, {0: 1.0}]))
        own.commit()
        save_fusion(own, Weighted({"lexical": 0.25, "text": 0.75}, calibration=(2.0, 0.0)))
        searcher = Searcher(WordEncoder(), own)
        answer = searcher.answer(Query(text="word0 toucan"))
        assert answer.legs == ("lexical", "text")
        assert [hit.id for hit in answer.hits] == ["a", "b"]
        assert answer.hits[0].relevance is not None
        assert searcher.answer(Query(text="toucan")).hits[0].relevance is None
        assert searcher.answer(Query(text="toucan", min_relevance=0.0)).hits == []
        with pytest.raises(InputError, match="the query has no known word"):
            searcher.leg_rankings(Query(text="toucan"))
        assert searcher.leg_rankings(Query(text="word0")).keys() == {*own.legs()}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A photo of the toucan", "toucan"),
        ("The Who", "the who"),
        ("red toucan", "red toucan"),
        ("...", ""),
    ],
)
def test_function_words_are_not_looked_for_beside_others(text: str, told: str) -> None:
    assert telling(text) == told
    assert telling("red toucan", ["Red"]) == "toucan"
