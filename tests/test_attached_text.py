"""The leg ``text`` of a user's own Elasticsearch index, against the formula of BM25."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

import elastic_fakes
from attached_fakes import ATTACHMENT, made, products
from hybrid_fakes import RowEncoder
from indexer_fakes import encode, random_rows
from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer import open_index
from lexvla_indexer.base import Index
from lexvla_search import Query, Searcher
from lexvla_search.field_weights import field_weights_of
from lexvla_search.shown_query import shown_query

ROWS = random_rows(np.random.default_rng(7), 30)
PRODUCTS = products(40)
NAMES = [product["id"] for product in PRODUCTS]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Iterator[Index]:
    with elastic_fakes.cleaned():
        address = elastic_fakes.address(tmp_path_factory.mktemp("own"))
        made(address, ROWS, PRODUCTS)
        with open_index(address) as opened:
            yield opened


def bm25(words: list[str], fields: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return what each word adds to each document's score."""
    parts: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    most = 0.0
    for field, weight in fields.items():
        texts = {p["id"]: p[field].split() for p in PRODUCTS}
        mean = sum(map(len, texts.values())) / len(texts)
        for word in words:
            count = sum(word in text for text in texts.values())
            if not count:
                continue
            idf = math.log1p((len(texts) - count + 0.5) / (count + 0.5))
            most += weight * idf * 2.2
            for name, text in texts.items():
                if often := text.count(word):
                    length = 1.2 * (0.25 + 0.75 * len(text) / mean)
                    score = weight * 2.2 * idf * often / (often + length)
                    parts[name][word] = parts[name].get(word, 0) + score
    return {name: {word: s / most for word, s in own.items()} for name, own in parts.items()}


@pytest.mark.elasticsearch
@pytest.mark.parametrize("fields", [None, {"title": 2.0, "description": 1.0}, {"title": 1.0}])
def test_words_of_their_fields(index, fields):
    view = index if fields is None else index.with_text_fields(fields)
    expected = bm25(["red", "shoe"], fields or {"title": 1, "description": 1})
    totals = {name: sum(own.values()) for name, own in expected.items() if own}
    # The server's numbers are float32.
    ordered = sorted(totals.items(), key=lambda pair: (-round(pair[1], 6), pair[0]))
    for k in (5, 100):
        results = view.search_text("Red SHOE red nothing", k)
        assert results.ids == [name for name, _ in ordered[:k]]
        assert results.scores.tolist() == pytest.approx([s for _, s in ordered[:k]], rel=1e-5)
    for name, parts in zip(NAMES, view.text_parts("Red shoe", NAMES), strict=True):
        own = {word.lower(): score for word, score in parts.items()}
        assert own == pytest.approx(expected[name], rel=1e-5)
    kept = [name for name, _ in ordered if PRODUCTS[NAMES.index(name)]["sale"]]
    assert view.search_text("red shoe", 100, "sale = true").ids == kept


@pytest.mark.elasticsearch
def test_encoded_fields_without_words_are_not_looked_into(tmp_path):
    place = elastic_fakes.address(tmp_path)
    for fields, searched in ((("title", "price"), ["title"]), (("price",), [])):
        attachment = replace(ATTACHMENT, text_fields=fields)
        made(f"{place}-{len(fields)}", ROWS, PRODUCTS, attachment)
        with open_index(f"{place}-{len(fields)}") as index:
            assert index.info()["searched_text_fields"] == searched
            assert ("text" in index.legs()) == bool(searched)
            assert bool(index.search_text("red").ids) == bool(searched)


@pytest.mark.elasticsearch
def test_a_keyword_is_one_word(index):
    view = index.with_text_fields({"title": 1, "brand": 3})
    found = view.search_text("brand1", 100)
    assert found.ids == sorted(p["id"] for p in PRODUCTS if p["brand"] == "brand1")
    assert found.scores.tolist() == pytest.approx([1.0] * len(found.ids))
    assert index.search_text("brand1").ids == []
    assert index.search_text(" ").ids == []


@pytest.mark.elasticsearch
def test_words_are_cut_as_each_field_cuts_them(tmp_path):
    from lexvla_indexer.elastic.connection import Address, connect

    place = elastic_fakes.address(tmp_path)
    made(place, ROWS[:1], PRODUCTS[:1])
    with connect(Address.parse(place)) as client:
        name = Address.parse(place).name
        texts = {
            "stopped": {"type": "text", "analyzer": "stop"},
            "asian": {"type": "text"},
            "typed": {"type": "text", "analyzer": "simple", "search_analyzer": "whitespace"},
            "deep": {"properties": {"up": {"type": "text", "fields": {"en": {
                "type": "text", "analyzer": "stop"}}}}},
            "flat": {"type": "text", "similarity": "boolean"},
            "unseen": {"type": "text", "index": False},
        }  # fmt: skip
        client.indices.put_mapping(index=name, properties=texts)
        sources = [
            {"stopped": "the shoe of runners"},
            {"asian": "\u8d64\u3044\u9774", "deep": {"up": "the shoe"}},
            {"typed": "wool-hat", "flat": "shoes shoes"},
        ]
        for at, source in enumerate(sources):
            client.index(index=name, id=f"d{at}", document=source, refresh=True)
    with open_index(place) as index:

        def parts(text, *fields, of):
            view = index.with_text_fields(dict.fromkeys(fields, 1.0))
            return list(view.text_parts(text, [of])[0])

        assert parts("the Shoe \U0001f600 runners", "stopped", of="d0") == ["Shoe", "runners"]
        assert parts("\u8d64\u9774", "asian", of="d1") == ["\u8d64", "\u9774"]
        assert parts("the shoe", "deep.up.en", "stopped", of="d1") == ["shoe"]
        assert parts("wool-hat", "typed", of="d2") == []
        assert parts("wool hat", "typed", of="d2") == ["hat", "wool"]
        boolean = index.with_text_fields({"flat": 5}).search_text("shoes")
        assert (boolean.ids, boolean.scores.tolist()) == (["d2"], [1.0])
        for field, error, said in (
            ("none", InputError, "no such field to look for words; there are asian, "),
            ("price", InputError, "is of type double; words are looked for in text and"),
            ("variants.colour", InputError, "within nested documents"),
            ("unseen", InputError, "is not indexed"),
        ):
            with pytest.raises(error, match=said):
                index.with_text_fields({field: 1})


@pytest.mark.elasticsearch
def test_hybrid_searches_add_up_and_are_explained(index):
    searcher = Searcher(RowEncoder(("lexical", "dense")), index)
    query = Query("word0:1 word4:0.5", filter="stock < 6", legs=("lexical", "dense"))
    hits = searcher.search(query, 10, explain=True)
    stored, asked = encode(ROWS), RowEncoder().encode_text([query.text])
    for hit in hits:
        assert hit.explanation.total() == pytest.approx(hit.score)
        assert searcher.explain(query, hit.id).score == pytest.approx(hit.score)
        row = stored[NAMES.index(hit.id)]
        assert hit.dense.score == pytest.approx(float(row.dense[0] @ asked.dense[0]), abs=1e-6)
        lexical = float((row.lexical @ asked.lexical.T).toarray()[0, 0])
        assert (hit.lexical.score if hit.lexical else 0.0) == pytest.approx(lexical)
    assert len(hits) == 10


@pytest.mark.elasticsearch
def test_text_and_words_together(index):
    searcher = Searcher(None, index)
    query = Query("red", terms={"word0": 1.0}, text_fields="title^2,description")
    answer = searcher.answer(query, explain=True)
    assert set(answer.legs) == {"lexical", "text"}
    expected = bm25(["red"], {"title": 2, "description": 1})
    for hit in answer.hits:
        own = expected[hit.id].get("red", 0.0)
        assert hit.text.score == pytest.approx(own, rel=1e-5)
        assert hit.explanation.total() == pytest.approx(hit.score)
        assert [match.word for match in hit.explanation.text] == (["red"] if own else [])
    assert "its words in title^2 and description" in query.describe()
    everywhere = searcher.search(Query("red", terms={"word0": 1.0}))
    assert everywhere != answer.hits


@pytest.mark.elasticsearch
def test_shown_requests_give_the_same_hits(index):
    searcher = Searcher(None, index)
    for legs in (("text",), ("lexical",)):
        text_fields = "title^3" if legs == ("text",) else None
        query = Query(
            "red hat", terms={"word1": 2.0}, legs=legs, filter="price < 8", k=50,
            text_fields=text_fields, ban=["word2"],
        )  # fmt: skip
        shown = shown_query(searcher, query, named=True)
        assert shown.steps[-1] == "It puts hits of equal score in the order of ids."
        (body,) = shown.requests.values()
        answer = index._client.search(
            index=index._store.index, body=body, search_type="dfs_query_then_fetch"
        )
        hits = [(-hit["_score"], hit["_id"]) for hit in answer["hits"]["hits"]]
        assert [name for _, name in sorted(hits)] == [hit.id for hit in searcher.search(query)]


def test_text_fields_are_read():
    assert field_weights_of("title^2, maker.name") == {"title": 2.0, "maker.name": 1.0}
    assert field_weights_of(["a^0.5", "b"]) == {"a": 0.5, "b": 1.0}
    assert field_weights_of({"a": 3}) == {"a": 3.0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("title^", "title.*weight must be a number, not ''"),
        ("title^two", "weight must be a number, not 'two'"),
        ("title^0", "weight must be above 0 and at most 1,000,000, not 0"),
        ("title^nan", "weight must be a finite number, not nan"),
        ("a,a", "given twice"),
        ("", "must be names of fields"),
        ([], "must be 1 to 32 fields, not 0"),
        (3, "must be fields, such as title"),
        ([3], "must be fields, such as title"),
        ({"a": True}, "weight must be a finite number, not True"),
    ],
)
def test_text_fields_that_break_a_rule(given, said):
    with pytest.raises(InputError, match=said):
        field_weights_of(given)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"terms": {"a": 1.0}}, "text_fields.*needs a text"),
        ({"text": "a", "legs": ("lexical",)}, "the query leaves out the leg text"),
        ({"text": "a", "fusion": "dense"}, "the query leaves out the leg text"),
    ],
)
def test_text_fields_need_the_leg(query, said):
    with pytest.raises(InputError, match=said):
        Query(**query, text_fields="title")


def test_other_indexes_have_no_text_fields(tmp_path):
    with (
        open_index(tmp_path / "i.lex", create=True) as index,
        pytest.raises(UnsupportedError, match="chosen in an attached index only"),
    ):
        Searcher(None, index).search(Query("a", text_fields="title"))
