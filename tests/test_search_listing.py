"""Similar items, listings without scores, sort, total, facets and cursors of a searcher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import elastic_fakes
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnknownDocumentError
from lexvla_indexer import Document, open_index
from lexvla_indexer.base import Index
from lexvla_indexer.facets import Facet
from lexvla_search import Query, Searcher, Weighted
from lexvla_search.encoded_query import encode_query
from search_fakes import FakeEncoder, spot

# id: words, dense vector, year, tags
ITEMS: dict[str, tuple[dict[str, float], tuple[float, float], int | None, list[str]]] = {
    "apple": ({"red": 1.0}, (1, 0), 2020, ["fruit", "food"]),
    "berry": ({"red": 0.6, "blue": 0.8}, (0.6, 0.8), 2019, ["fruit"]),
    "coal": ({"black": 1.0}, (-1, 0), None, []),
    "dusk": ({"blue": 0.8, "black": 0.6}, (0, 1), 2021, ["sky"]),
    "ember": ({"red": 0.8, "black": 0.6}, (0.8, 0.6), 2020, ["sky", "fire"]),
    "frost": ({"white": 1.0}, (0, 1), 2018, ["sky"]),
}


class Encoder(FakeEncoder):
    """Colour words, with a dense vector of two columns: red and blue."""

    def encode_text(self, texts: list[str]) -> Encoding:
        made = super().encode_text(texts)
        dense = made.lexical.toarray()[:, [0, 2]]
        return Encoding(made.lexical, dense=dense.astype(np.float32))


def fill(address: str | Path) -> Index:
    """Make an index of the items."""
    encoder = Encoder()
    rows = np.zeros((len(ITEMS), len(encoder.vocabulary)), np.float32)
    documents = []
    for row, (name, (words, _, year, tags)) in zip(rows, ITEMS.items(), strict=True):
        for word, weight in words.items():
            row[encoder.vocabulary.find(word)] = weight
        metadata = {"tag": tags} | ({} if year is None else {"year": year})
        documents.append(Document(name, metadata=metadata))
    dense = np.array([vector for _, vector, _, _ in ITEMS.values()], np.float32)
    made = open_index(address, create=True, vocabulary=encoder.vocabulary, model="fake")
    made.add(documents, Encoding(sparse.csr_array(rows), dense=dense))
    made.commit()
    return made


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with fill(tmp_path_factory.mktemp("listing") / "i") as made:
        yield made


@pytest.fixture
def searcher(index: Index) -> Searcher:
    return Searcher(Encoder(), index)


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("lucene", marks=pytest.mark.java),
        pytest.param("elastic", marks=pytest.mark.elasticsearch),
    ]
)
def every(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Searcher]:
    """A searcher of each engine in turn."""
    if request.param == "elastic":
        with elastic_fakes.cleaned(), fill(elastic_fakes.address(tmp_path / "i")) as made:
            yield Searcher(Encoder(), made)
        return
    prefix = "lucene:" if request.param == "lucene" else ""
    with fill(f"{prefix}{tmp_path / 'i'}") as made:
        yield Searcher(Encoder(), made)


def ids(hits: list) -> list[str]:
    return [hit.id for hit in hits]


def row(encoded: Encoding) -> list[float]:
    return encoded.lexical.toarray()[0].tolist()


def test_a_string_is_a_text(searcher: Searcher) -> None:
    assert searcher.search("red") == searcher.search(Query(text="red"))
    assert searcher.search_many(["red"], k=1) == [searcher.search("red", k=1)]


def test_like_one_item(searcher: Searcher) -> None:
    encoded = searcher.encode(Query(similar="berry")).encoding
    assert row(encoded) == pytest.approx([0.6, 0, 0.8, 0, 0, 0])
    assert encoded.dense == pytest.approx(np.array([[0.6, 0.8]]))
    hits = searcher.search(Query(similar="berry"))
    # Half the words' product, half that of the dense vectors; "berry" itself is not a hit.
    scores = {"ember": 0.5 * 0.48 + 0.5 * 0.96, "dusk": 0.5 * 0.64 + 0.5 * 0.8}
    scores |= {"apple": 0.5 * 0.6 + 0.5 * 0.6, "frost": 0.5 * 0.8}
    assert {hit.id: hit.score for hit in hits} == pytest.approx(scores)
    assert ids(hits) == sorted(scores, key=lambda name: -scores[name])


def test_like_some_items_and_unlike_others(searcher: Searcher) -> None:
    encoded = searcher.encode(Query(similar={"ember": 2, "apple": -1, "coal": 0.5})).encoding
    # 2 x (red 0.8, black 0.6) - red 1 + 0.5 x black 1, and 2 x (0.8, 0.6) - (1, 0) - (0.5, 0)
    words = np.array([0.6, 0, 0, 0, 0, 1.7])
    assert row(encoded) == pytest.approx(words / np.linalg.norm(words))
    dense = np.array([[0.1, 1.2]])
    assert encoded.dense == pytest.approx(dense / np.linalg.norm(dense))
    less = searcher.encode(Query(similar={"dusk": 1, "berry": -1})).encoding
    assert row(less) == [0, 0, 0, 0, 0, 1]  # what is below 0 is left out
    assert less.dense == pytest.approx(np.array([[-0.6, 0.2]]) / np.sqrt(0.4))


def test_like_an_item_and_a_text(searcher: Searcher) -> None:
    encoded = searcher.encode(Query(text="white", similar=["berry"])).encoding
    words = np.array([0.6, 0, 0.8, 0, 1, 0])
    assert row(encoded) == pytest.approx(words / np.sqrt(2))
    assert encoded.dense == pytest.approx(np.array([[0.6, 0.8]]))
    query = Query(text="red", similar=["berry"], ban=["black"])
    assert ids(searcher.search(query)) == ["apple", "frost"]


def test_codes_are_the_mean() -> None:
    codes = sparse.csr_array(np.array([[0.5, 0.5, 0], [0, 0.8, 0.2]], np.float32))
    lexical = sparse.csr_array(np.eye(2, 6, dtype=np.float32))
    query = Query(similar={"a": 1, "b": -0.5})
    encoded = encode_query(query, FakeEncoder(), Encoding(lexical, codes=codes)).encoding
    assert encoded.codes is not None
    assert encoded.codes.toarray()[0] == pytest.approx([0.5 / 1.5, 0.1 / 1.5, 0])
    assert encoded.codes.nnz == 2


def test_unknown_and_impossible_items(searcher: Searcher) -> None:
    with pytest.raises(UnknownDocumentError, match="'nothing': the index has no such id"):
        searcher.search(Query(similar=["apple", "nothing"]))
    with pytest.raises(InputError, match="nothing to look for"):
        searcher.search(Query(similar={"apple": -1, "coal": -1}))
    away = searcher.answer(Query(similar={"apple": -3}))  # its words leave nothing, its vector does
    assert row(away.encoding) == [0] * 6
    assert [(hit.id, hit.score) for hit in away.hits] == [("coal", 0.5)]
    rows = Encoding(sparse.csr_array(np.eye(1, 6, dtype=np.float32)))
    with pytest.raises(InputError, match="'similar': the weights leave nothing to look for"):
        encode_query(Query(similar={"a": -1}), FakeEncoder(), rows)
    for dense in (None, np.zeros((1, 4), np.float32)):
        empty = Encoding(sparse.csr_array((1, 6), dtype=np.float32), dense=dense)
        with pytest.raises(InputError, match="'similar': these items have no vectors to search by"):
            encode_query(Query(similar=["a"]), FakeEncoder(), empty)
    for bad in ({"a": 0}, {"a": 1e7}, {"a": True}, ["a", "a"], [3], 3, "", {"\n": 1}, ["a"] * 257):
        with pytest.raises(InputError):
            Query(similar=bad)  # type: ignore[arg-type]


def test_a_listing_scores_nothing(searcher: Searcher) -> None:
    answer = searcher.answer(Query(filter="year >= 2019", k=2, facets=["tag"]))
    assert ids(answer.hits) == ["apple", "berry"]
    assert [hit.rank for hit in answer.hits] == [1, 2]
    hit = answer.hits[0]
    assert (hit.score, hit.relevance, hit.lexical, hit.explanation) == (None, None, None, None)
    assert hit.document.metadata == {"year": 2020, "tag": ["fruit", "food"]}
    assert (answer.total, answer.total_exact, answer.legs, answer.fusion) == (4, True, (), None)
    assert (answer.good_match, answer.words) == (None, [])
    counts = answer.facets_to_dict()["tag"]
    assert counts["values"] == [
        {"value": "fruit", "count": 2},
        {"value": "sky", "count": 2},
        {"value": "fire", "count": 1},
        {"value": "food", "count": 1},
    ]
    assert searcher.search(Query(filter="year >= 2019", k=2), explain=True) == answer.hits
    with pytest.raises(InputError, match="scores no document"):
        searcher.explain(Query(filter="year >= 2019"), "apple")


def test_every_engine_lists_and_counts_alike(every: Searcher) -> None:
    assert ids(every.search(Query(ban=["red"]))) == ["coal", "dusk", "frost"]
    assert ids(every.search(Query(require=["red"], ban=["blue"]))) == ["apple", "ember"]
    assert ids(every.search(Query(require=["red", "blue"]))) == ["berry"]
    answer = every.answer(Query(require=["red"], filter="year = 2020", facets=["year"]))
    assert (ids(answer.hits), answer.total) == (["apple", "ember"], 2)
    assert answer.facets_to_dict()["year"]["values"] == [{"value": 2020, "count": 2}]
    first = every.answer(Query(sort=["-year", "tag"], ban=["white"], k=3))
    assert (ids(first.hits), first.total) == (["dusk", "ember", "apple"], 5)
    rest = every.answer(Query(sort=["-year", "tag"], ban=["white"], after=first.next))
    assert (ids(rest.hits), rest.next) == (["berry", "coal"], None)
    assert [hit.rank for hit in rest.hits] == [4, 5]


def test_every_engine_searches_by_items_alike(every: Searcher) -> None:
    similar = Query(similar={"ember": 2, "apple": -1}, legs=("lexical",), facets=["tag"])
    answer = every.answer(similar)
    # 2 x (red 0.8, black 0.6) - red 1 = (red 0.6, black 1.2)
    size = np.hypot(0.6, 1.2)
    scores = {"coal": 1.2 / size, "dusk": 0.72 / size, "berry": 0.36 / size}
    assert ids(answer.hits) == list(scores)
    assert [hit.score for hit in answer.hits] == pytest.approx(list(scores.values()), rel=0.02)
    assert (answer.total, answer.total_exact) == (4, True)
    assert answer.facets_to_dict()["tag"] == {
        "values": [{"value": "sky", "count": 2}, {"value": "fruit", "count": 1}],
        "other": 0,
        "missing": 1,
    }
    by_year = Query(text="red", legs=("lexical",), min_score=0.3, sort=["year"], k=2)
    first = every.answer(by_year)
    assert (ids(first.hits), first.total, first.total_exact) == (["berry", "apple"], 3, True)
    assert ids(every.search(replace(by_year, after=first.next))) == ["ember"]


def test_sorted_listing(searcher: Searcher) -> None:
    assert ids(searcher.search(Query(sort="year"))) == [
        *("frost", "berry", "apple", "ember", "dusk", "coal")
    ]
    assert ids(searcher.search(Query(sort=["-year", "-tag"]))) == [
        *("dusk", "ember", "apple", "berry", "frost", "coal")
    ]
    with pytest.raises(InputError, match="no document has such a field to sort by"):
        searcher.search(Query(sort="yaer"))


def test_a_scored_query_is_sorted_within_its_bound(searcher: Searcher) -> None:
    with pytest.raises(InputError, match="needs min_score or min_relevance to be sorted"):
        Query(text="red", sort="year")
    query = Query(text="red", sort="year", min_score=0.3, facets=["tag"])
    answer = searcher.answer(query)
    assert ids(answer.hits) == ["berry", "apple", "ember"]
    assert [hit.score for hit in answer.hits] == pytest.approx([0.6, 1, 0.8])
    assert [hit.rank for hit in answer.hits] == [1, 2, 3]
    assert (answer.total, answer.total_exact) == (3, True)
    assert answer.facets_to_dict()["tag"]["values"][0] == {"value": "fruit", "count": 2}
    assert answer.good_match == searcher.answer(Query(text="red")).good_match


def test_total_of_a_scored_query(searcher: Searcher) -> None:
    def total(**given: object) -> tuple[int, bool]:
        answer = searcher.answer(Query(text="red", **given))  # type: ignore[arg-type]
        return answer.total, answer.total_exact

    assert total(k=1) == (6, True)
    assert total(filter="year >= 2020") == (3, True)
    assert total(ban=["black"]) == (3, True)
    assert total(require=["blue"]) == (2, True)
    assert total(similar=["apple"]) == (5, True)
    assert total(min_score=0.7) == (2, True)
    assert total(min_score=0.7, k=1) == (2, True)
    assert total(min_score=0.7, offset=5) == (2, True)
    rest = {"similar": ["apple"], "ban": ["blue"], "facets": ["year"]}
    assert total(**rest) == (3, True)  # coal, ember, frost


def test_a_total_that_is_not_counted_to_the_end_says_so(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexvla_search.searcher.COUNTED", 1)
    answer = searcher.answer(Query(text="red", ban=["black"], k=1))
    assert (answer.total, answer.total_exact) == (2, False)
    answer = searcher.answer(Query(text="red", min_score=0.1, k=1))
    assert (answer.total, answer.total_exact) == (2, False)
    exact = searcher.answer(Query(text="red", ban=["black"], k=1, facets=["year"]))
    assert (exact.total, exact.total_exact) == (3, True)
    assert exact.facets_to_dict()["year"]["missing"] == 0


QUERIES = [
    Query(),
    Query(sort="-year"),
    Query(sort=["tag", "year"], ban=["white"]),
    Query(text="red", fusion="rrf"),
    Query(text="red blue black"),
    Query(text="red blue black", fusion="lexical"),
    Query(text="red blue black", sort=["year"], min_score=0.2),
    Query(image=spot("red", (1, 2)), legs=("lexical",)),
]


@pytest.mark.parametrize("query", QUERIES, ids=Query.describe)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_pages_by_cursor_give_what_one_page_gives(searcher: Searcher, query: Query, k: int) -> None:
    whole = searcher.answer(query, k=100)
    assert whole.hits
    assert whole.next is None
    found, after, start = [], None, 0
    while True:
        page = searcher.answer(replace(query, k=k, after=after))
        assert page.total == whole.total
        by_offset = searcher.answer(replace(query, k=k, offset=start))
        assert by_offset.hits == page.hits
        assert by_offset.next == page.next
        found += page.hits
        start += k
        if page.next is None:
            break
        assert len(page.hits) == k
        after = page.next
    assert found == whole.hits


def test_a_cursor_of_another_query(searcher: Searcher) -> None:
    after = searcher.answer(Query(sort="year", k=2)).next
    assert ids(searcher.search(Query(sort="year", k=1, after=after, facets=["tag"]))) == ["apple"]
    others = [
        Query(sort="-year", after=after),
        Query(after=after),
        Query(sort="year", filter="year > 0", after=after),
        Query(text="red", sort="year", min_score=0.1, after=after),
    ]
    for other in others:
        with pytest.raises(InputError, match="'after': is of another query"):
            searcher.search(other)
    picture = Query(image=spot("red", (1, 2)), k=1, legs=("lexical",))
    after = searcher.answer(picture).next
    assert after is not None
    with pytest.raises(InputError, match="is of another query"):
        searcher.search(Query(image=spot("blue", (1, 2)), after=after, legs=("lexical",)))
    with pytest.raises(InputError, match="cannot go with an offset"):
        Query(after=after, offset=1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda data: data.hex()))
def test_a_damaged_cursor(searcher: Searcher, text: str) -> None:
    for after in (text, (searcher.answer(Query(k=1)).next or "")[:-4] + text):
        with pytest.raises(InputError, match="after"):
            searcher.search(Query(after=after))


def test_a_cursor_goes_on_below_its_document_after_a_change(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    names = ["a", "b", "c", "d"]
    with open_index(tmp_path / "i", create=True, vocabulary=encoder.vocabulary) as index:
        documents = [Document(name, metadata={"n": n}) for n, name in enumerate(names)]
        index.add(documents, encoder.encode_text(["red"] * 4))
        index.commit()
        searcher = Searcher(None, index)
        after = searcher.answer(Query(sort="n", k=2)).next
        index.delete(["b"])
        index.add([Document("a2", metadata={"n": 0.5})], encoder.encode_text(["red"]))
        index.commit()
        page = searcher.answer(Query(sort="n", k=5, after=after))
        assert ids(page.hits) == ["c", "d"]
        assert [hit.rank for hit in page.hits] == [3, 4]


def test_facets_are_checked() -> None:
    made = Query(facets=["tag", {"field": "year", "ranges": [[None, 1], (1, 2.5)]}]).asked_facets
    assert made == (Facet("tag"), Facet("year", ranges=[(None, 1), (1, 2.5)]))
    assert [facet.to_dict() for facet in made] == [
        {"field": "tag", "limit": 10},
        {"field": "year", "ranges": [[None, 1], [1, 2.5]]},
    ]
    for bad in (3, [3], [{"limit": 3}], [{"field": "a", "size": 3}], ["a", "a"], [""]):
        with pytest.raises(InputError):
            Query(facets=bad)  # type: ignore[arg-type]
    for ranges in (
        [],
        [(1,)],
        [(None, None)],
        [(1, "a")],
        [(True, 2)],
        [(float("nan"), 1)],
        3,
        [(2, 1)],
        [(1, 1.0)],
    ):
        with pytest.raises(InputError):
            Facet("a", ranges=ranges)  # type: ignore[arg-type]
    for limit in (0, 1001, True, 1.0):
        with pytest.raises(InputError, match="the limit of a facet"):
            Facet("a", limit=limit)  # type: ignore[arg-type]


def test_a_sum_of_hits_below_the_bound_is_complete(searcher: Searcher) -> None:
    query = Query(text="red", fusion=Weighted({"lexical": 1.0}), min_score=0.7, k=1)
    answer = searcher.answer(query)
    assert (answer.total, answer.total_exact) == (2, True)
    assert answer.next is not None
