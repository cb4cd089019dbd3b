"""Hybrid search against plain formulas over all documents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_fakes import (
    RowEncoder,
    by_rank,
    by_score,
    filled,
    leg_lists,
    names_of,
    ranking,
    shown,
    text_of,
)
from indexer_fakes import LEGS, VOCABULARY, WORDS, random_rows
from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer.base import Index
from lexvla_search import Query, ReciprocalRank, Searcher, Weighted, save_fusion
from lexvla_search.encoded_query import encode_query
from lexvla_search.fusion import named_fusion
from lexvla_search.searcher import COUNTED

ROWS = random_rows(np.random.default_rng(7), 60)
DEPTH = 8  # less than the documents that a leg finds, so that legs differ in what they bring


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with filled(tmp_path_factory.mktemp("hybrid") / "rows.lex", ROWS) as made:
        yield made


rows = st.dictionaries(
    st.integers(0, WORDS - 1), st.integers(1, 8).map(lambda n: n / 8), min_size=1, max_size=5
)
weights = st.fixed_dictionaries({leg: st.sampled_from([0.125, 0.5, 1.0, 2.0]) for leg in LEGS})
leg_sets = st.lists(st.sampled_from(LEGS), min_size=1, unique=True).map(
    lambda chosen: tuple(leg for leg in LEGS if leg in chosen)
)
words = st.lists(st.integers(0, WORDS - 1), max_size=2, unique=True)


@st.composite
def fusions(draw: st.DrawFn) -> tuple:
    """Return a fusion, with the legs and weights of it."""
    legs = draw(leg_sets)
    own = {leg: weight for leg, weight in draw(weights).items() if leg in legs}
    if draw(st.booleans()):
        constant = draw(st.sampled_from([0.0, 1.0, 60.0]))
        return ReciprocalRank(constant, own, DEPTH), own, constant
    kind = draw(st.sampled_from(["raw", "minmax", "zscore"]))
    return Weighted(own, kind, DEPTH), own, kind


@settings(max_examples=200, deadline=None)
@given(rows, fusions(), words, words, st.integers(1, DEPTH), st.integers(0, 4))
def test_hits_are_those_of_the_formulas(index, row, fused, banned, required, k, offset) -> None:
    fusion, own, how = fused
    required = [column for column in required if column not in banned]
    offset = min(offset, DEPTH - k)
    query = Query(
        text=text_of(row),
        ban=[VOCABULARY.word(c) for c in banned],
        require=[VOCABULARY.word(c) for c in required],
        fusion=fusion,
        k=k,
        offset=offset,
    )
    with mock.patch("lexvla_indexer.strongest.SHOWN_WORDS", 2):
        hits = Searcher(RowEncoder(), index).search(query, explain=True)
    seen = [shown(document, 2) for document in ROWS]
    kept = [own.isdisjoint(banned) and own.issuperset(required) for own in seen]
    encoded = encode_query(query, RowEncoder()).encoding
    assert not set(encoded.lexical.indices) & set(banned)
    lists, scores = leg_lists(ROWS, encoded, list(own), DEPTH, kept)
    if isinstance(fusion, ReciprocalRank):
        expected = ranking(by_rank(lists, own, how))
    else:
        # By raw scores the best of all documents are found, and not only of the legs' best.
        pool = lists
        if how == "raw":
            pool, _ = leg_lists(ROWS, encoded, list(own), len(ROWS), kept)
        expected = ranking(by_score(pool, scores, own, how))
    found = [(hit.id, pytest.approx(hit.score, abs=1e-9)) for hit in hits]
    # Sums in another order may differ in the last bit, and so may the order of equal scores.
    page = expected[offset : offset + k]
    assert [score for _, score in found] == [score for _, score in page]
    for (name, _), (wanted, score) in zip(found, page, strict=True):
        same = {n for n, s in expected if math.isclose(s, score, abs_tol=1e-9)}
        assert name in same
        assert wanted in same
    assert [hit.rank for hit in hits] == list(range(offset + 1, offset + len(hits) + 1))
    for hit in hits:
        check_explanation(hit, lists, scores, isinstance(fusion, Weighted))


def check_explanation(hit, lists, scores, rescored: bool) -> None:
    explanation = hit.explanation
    assert explanation.score == hit.score
    assert explanation.total() == pytest.approx(hit.score, abs=1e-12)
    assert math.fsum(part.part for part in explanation.parts) == explanation.total()
    assert [part.leg for part in explanation.parts] == [leg for leg in LEGS if leg in lists]
    for part in explanation.parts:
        own = getattr(hit, part.leg)
        rank = lists[part.leg].index(hit.id) + 1 if hit.id in lists[part.leg] else None
        assert part.rank == rank
        if rank is None and not rescored:
            assert (own, part.part) == (None, 0)
            continue
        assert own.rank == rank
        assert own.score == pytest.approx(scores[part.leg][hit.id], abs=1e-12)
        if part.leg == "lexical" and explanation.matches:
            shares = math.fsum(match.part for match in explanation.matches)
            assert shares == pytest.approx(part.part, abs=1e-12)
            # The words' products make the leg's score without any help.
            assert explanation.difference == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["rrf", "weighted", "minmax", *LEGS, None])
def test_explain_agrees_with_search(index: Index, name: str | None) -> None:
    searcher = Searcher(RowEncoder(), index)
    query = Query(text="word0:1 word6:0.5", ban=["word3"], fusion=name, k=20)
    hits = searcher.search(query, explain=True)
    assert hits
    for hit in hits:
        assert searcher.explain(query, hit.id) == hit


def test_explain_a_banned_item(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    query = Query(text="word0:1 word6:0.5", fusion=Weighted(None, "raw"))
    best = searcher.search(query)[0]
    word = next(match.word for match in searcher.explain(query, best.id).explanation.matches)
    banned = Query(text="word0:1 word6:0.5", ban=[word], fusion=Weighted(None, "raw"))
    hit = searcher.explain(banned, best.id)
    assert hit.rank is None
    assert hit.dense.score == pytest.approx(best.dense.score)
    assert word not in [match.word for match in hit.explanation.matches]
    assert hit.explanation.total() == pytest.approx(hit.score, abs=1e-12)


def test_the_default(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    answer = searcher.answer(Query(text="word0:1 word6:0.5"))
    # Codes are not asked beside other legs unless somebody says so.
    assert answer.legs == ("lexical", "dense")
    assert answer.fusion == named_fusion("weighted")
    assert answer.good_match is None
    assert {hit.relevance for hit in answer.hits} == {None}
    both = Query(text="word0:1 word6:0.5", legs=("lexical", "dense"), fusion="weighted")
    assert answer.hits == searcher.search(both)
    named = searcher.answer(Query(text="word0:1 word6:0.5", fusion="weighted"))
    assert named.legs == LEGS
    assert answer.words == [("word0", 1.0), ("word6", 0.5)]
    assert answer.encode_seconds >= 0
    assert answer.search_seconds > 0


def test_one_leg_keeps_its_own_scores(index: Index) -> None:
    for leg in LEGS:
        only = Searcher(RowEncoder(), index).answer(Query(text="word0:1 word6:0.5", legs=(leg,)))
        assert only.fusion == named_fusion(leg)
        assert only.hits
        for hit in only.hits:
            assert hit.score == getattr(hit, leg).score


def test_terms_have_words_only(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    answer = searcher.answer(Query(terms={"word1": 3.0, "word5": 4.0}))
    assert answer.legs == ("lexical",)
    assert answer.words == [
        ("word5", pytest.approx(0.8, abs=1e-6)),
        ("word1", pytest.approx(0.6, abs=1e-6)),
    ]
    with pytest.raises(UnsupportedError, match="the query has no dense leg"):
        searcher.search(Query(terms={"word1": 1.0}, legs=("lexical", "dense")))
    with pytest.raises(UnsupportedError, match="the query has no codes leg"):
        searcher.search(Query(terms={"word1": 1.0}, fusion="codes"))


def test_an_index_without_the_leg(tmp_path: Path) -> None:
    with filled(tmp_path / "words.lex", ROWS[:9], RowEncoder(("lexical",))) as words_only:
        searcher = Searcher(RowEncoder(), words_only)
        answer = searcher.answer(Query(text="word0:1 word6:0.5"))
        assert (answer.legs, answer.fusion) == (("lexical",), named_fusion("lexical"))
        for query in (
            Query(text="word1:1", legs=("dense",)),
            Query(text="word1:1", fusion="dense"),
            Query(text="word1:1", fusion=Weighted({"lexical": 0.5, "dense": 0.5})),
        ):
            with pytest.raises(UnsupportedError, match="has no dense leg"):
                searcher.search(query)


def test_one_search_a_leg_and_documents_of_the_hits_alone(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    for fusion in ("rrf", "minmax", "weighted"):
        with (
            mock.patch.object(index, "search", wraps=index.search) as search,
            mock.patch.object(index, "search_legs", wraps=index.search_legs) as search_legs,
            mock.patch.object(index, "fetch", wraps=index.fetch) as fetch,
            mock.patch.object(index, "vectors", wraps=index.vectors) as vectors,
        ):
            hits = searcher.search(Query(text="word0:1 word6:0.5", fusion=fusion), 3, explain=True)
        asked = [] if fusion == "weighted" else list(LEGS)
        assert [call.args[2] for call in search.call_args_list] == asked
        assert search_legs.call_count == (fusion == "weighted")
        fetch.assert_called_once_with([hit.id for hit in hits])
        assert vectors.call_count == (fusion == "minmax")


def test_bans_look_deeper_only_as_far_as_needed(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    query = Query(text="word1:1", ban=["word2"], fusion=Weighted({"lexical": 1.0}, "raw", 1), k=2)
    with mock.patch.object(index, "search", wraps=index.search) as search:
        hits = searcher.search(query)
    assert len(hits) == 2
    *depths, counting = [call.args[1] for call in search.call_args_list]
    # One more than asked for tells whether another page follows.
    assert depths == [3 * 4**i for i in range(len(depths))]
    assert counting == COUNTED + 1


def test_a_requirement_that_none_meets(index: Index) -> None:
    rare = [row for row in ROWS if 11 not in row]
    assert rare
    hits = Searcher(RowEncoder(), index).search(
        Query(text="word1:1", require=["word11", "word10", "word9", "word8", "word7"])
    )
    assert hits == []


def test_paging_gives_what_one_page_gives(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    for fusion in ("rrf", "weighted", "lexical", None):
        whole = searcher.search(Query(text="word0:1 word6:0.5", fusion=fusion, k=30))
        pages = [
            hit
            for offset in range(0, 30, 7)
            for hit in searcher.search(
                Query(text="word0:1 word6:0.5", fusion=fusion, k=min(7, 30 - offset), offset=offset)
            )
        ]
        assert pages == whole


def test_min_score(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    every = searcher.search(Query(text="word0:1 word6:0.5", k=50))
    least = every[4].score
    some = searcher.search(Query(text="word0:1 word6:0.5", k=50, min_score=least))
    assert some == [hit for hit in every if hit.score >= least]
    assert 5 <= len(some) < len(every)


def test_search_many(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    queries = [Query(text="word1:1"), Query(text="word2:1", k=3)]
    assert searcher.search_many(queries) == [searcher.search(query) for query in queries]
    assert searcher.search_many(queries, k=1) == [searcher.search(q, k=1) for q in queries]
    with pytest.raises(TypeError, match="a list of queries"):
        searcher.search_many("cat")  # not three queries of a letter


def test_the_index_has_its_own_fusion(tmp_path: Path) -> None:
    with filled(tmp_path / "own.lex", ROWS) as own:
        fitted = Weighted({"lexical": 0.25, "dense": 0.75}, "raw")
        save_fusion(own, fitted)
        searcher = Searcher(RowEncoder(), own)
        text = "word0:1 word6:0.5"
        answer = searcher.answer(Query(text=text))
        assert (answer.legs, answer.fusion) == (("lexical", "dense"), fitted)
        assert answer.hits == searcher.search(Query(text=text, fusion=fitted))
        # What the query says counts more.
        assert searcher.answer(Query(text=text, fusion="rrf")).fusion == ReciprocalRank()
        # A query without a dense vector is asked by its words; without words to weigh, by default.
        terms = searcher.answer(Query(terms={"word1": 1.0}))
        assert (terms.legs, terms.fusion) == (("lexical",), named_fusion("lexical"))
        codes = searcher.answer(Query(text=text, legs=("codes",)))
        assert (codes.legs, codes.fusion) == (("codes",), named_fusion("codes"))


@pytest.mark.parametrize("explain", [False, True])
def test_a_document_that_a_writer_deletes_meanwhile(tmp_path: Path, explain: bool) -> None:
    read_by = "fetch" if explain else "documents"
    with filled(tmp_path / "busy.lex", ROWS) as busy:
        searcher = Searcher(RowEncoder(), busy)
        query = Query(text="word0:1 word6:0.5")
        first = searcher.search(query)[0].id
        read = getattr(busy, read_by)

        def delete_then_read(ids: list[str]) -> object:
            setattr(busy, read_by, read)
            busy.delete([first])
            busy.commit()
            return read(ids)

        with mock.patch.object(busy, read_by, delete_then_read):
            hits = searcher.search(query, explain=explain)
        assert first not in [hit.id for hit in hits]
        assert hits == searcher.search(query, explain=explain)


def test_names_and_k(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    assert len(searcher.search(Query(text="word1:1", k=3))) == 3
    assert len(searcher.search(Query(text="word1:1", k=3), k=5)) == 5
    with pytest.raises(InputError, match="at most 10,000 together"):
        searcher.search(Query(text="word1:1", offset=9_999), k=2)
    assert set(names_of(ROWS)) >= {hit.id for hit in searcher.search(Query(text="word1:1", k=60))}
