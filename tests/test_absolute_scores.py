"""The default order of hits: by absolute scores, over all documents, whatever the page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import elastic_fakes
import opensearch_fakes
from hybrid_fakes import RowEncoder, filled, names_of, text_of
from indexer_fakes import LEGS, VOCABULARY, WORDS, encode, random_rows, scores
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer import Document, open_index
from lexvla_indexer.base import Index
from lexvla_indexer.embedded.segment import Segment
from lexvla_search import Query, ReciprocalRank, Searcher, Weighted, save_fusion
from lexvla_search.candidates import leg_scores
from lexvla_search.encoded_query import encode_query
from postings_fakes import searching

rows = st.dictionaries(
    st.integers(0, WORDS - 1), st.integers(1, 8).map(lambda n: n / 8), min_size=1, max_size=5
)
# Copies among them, which score alike.
stores = st.lists(st.tuples(rows, st.integers(1, 3), st.booleans()), min_size=1, max_size=12).map(
    lambda pairs: [(row, gone) for row, count, gone in pairs for _ in range(count)]
)
weights = st.dictionaries(st.sampled_from(LEGS), st.sampled_from([0.1, 0.3, 0.5, 1.0]), min_size=2)


@settings(max_examples=60)
@given(stores, rows, weights, st.integers(1, 12), st.integers(0, 12), st.booleans(), st.data())
def test_the_best_of_all_documents(
    tmp_path_factory, stored, row, own, k, offset, filtered, data
) -> None:
    names = data.draw(st.permutations(names_of(stored)))
    cut = data.draw(st.integers(0, len(names)))
    address = tmp_path_factory.mktemp("sum") / "rows.lex"
    with open_index(str(address), create=True, vocabulary=VOCABULARY, model="rows") as index:
        for part in (slice(0, cut), slice(cut, None)):
            if names[part]:
                kept = [
                    Document(name, metadata={"even": int(name[1:]) % 2}) for name in names[part]
                ]
                index.add(kept, encode([row for row, _ in stored[part]]))
                index.commit()
        index.delete([name for name, (_, gone) in zip(names, stored, strict=True) if gone])
        index.commit()
        fusion = Weighted(own, depth=3)
        query = Query(
            text=text_of(row),
            fusion=fusion,
            k=k,
            offset=offset,
            filter="even = 1" if filtered else None,
        )
        hits = Searcher(RowEncoder(), index).search(query, explain=True)
    asked = encode_query(query, RowEncoder()).encoding
    by_leg = {leg: scores(leg, encode([row for row, _ in stored]), asked) for leg in own}
    expected = []
    for place, (name, (_, gone)) in enumerate(zip(names, stored, strict=True)):
        total = 0.0
        for leg in LEGS:
            if leg in own:
                total += own[leg] * max(float(by_leg[leg][place]), 0.0)
        if total > 0 and not gone and not (filtered and int(name[1:]) % 2 == 0):
            expected.append((-total, name))
    page = sorted(expected)[offset : offset + k]
    assert [(-hit.score, hit.id) for hit in hits] == page
    for hit in hits:
        assert math.fsum(part.part for part in hit.explanation.parts) == pytest.approx(hit.score)


def large_store(count: int) -> Encoding:
    """Return rows of 16 words of 300 and of 24 columns, with weights that no integer fits."""
    rng = np.random.default_rng(29)
    columns = np.sort(np.argsort(rng.random((count, 300)))[:, :16]).astype(np.int32)
    values = rng.gamma(1.0, 0.2, columns.shape).astype(np.float32) + np.float32(1e-3)
    starts = np.arange(count + 1) * 16
    lexical = sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(count, 300))
    return Encoding(lexical, None, None, rng.normal(size=(count, 24)).astype(np.float32))


@pytest.mark.parametrize("way", ["numba", "numpy"])
def test_few_of_many_rows_are_scored_exactly_and_none_is_missed(tmp_path: Path, way: str) -> None:
    if way == "numba":
        pytest.importorskip("numba", reason="needs numba: pip install 'lexvla[fast]'")
    stored = large_store(4000)
    queries, stored = stored[:8], stored[8:]
    names = [f"d{i:04}" for i in range(len(stored))]
    weights = {"lexical": 0.7, "dense": 0.3}
    scored: list[int] = []
    real = Segment.scores

    def counted(segment: Segment, leg: str, query: object, rows: np.ndarray) -> np.ndarray:
        scored.append(len(rows))
        return real(segment, leg, query, rows)

    with (
        searching(way),
        open_index(str(tmp_path / "large.lex"), create=True) as index,
        mock.patch.object(Segment, "scores", counted),
    ):
        for part in (slice(0, 2500), slice(2500, None)):
            index.add([Document(name) for name in names[part]], stored[part])
            index.commit()
        for query in queries:
            found = index.search_legs(query, weights, 10, 20)
            own = {leg: leg_scores(leg, query, stored) for leg in weights}
            total = 0.7 * own["lexical"] + 0.3 * np.maximum(own["dense"], 0)
            by_name = {
                leg: dict(zip(found.ids, of.tolist(), strict=True))
                for leg, of in found.scores.items()
            }
            for leg, scores_of_all in own.items():
                pairs = dict(zip(names, scores_of_all.tolist(), strict=True))
                assert by_name[leg] == {name: pairs[name] for name in found.ids}
                assert set(best_names(names, scores_of_all, 20)) <= set(found.ids)
            assert set(best_names(names, total, 10)) <= set(found.ids)
    assert max(scored) < 600


def best_names(names: list[str], values: np.ndarray, count: int) -> list[str]:
    return [names[i] for i in np.argsort(-values, kind="stable")[:count]]


STORED = random_rows(np.random.default_rng(17), 160)  # over 10 times a depth of 15
TEXT = " ".join(f"{VOCABULARY.word(column)}:{(column + 1) / 16}" for column in range(WORDS))


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        pytest.param("lucene", marks=pytest.mark.java),
        pytest.param("elastic", marks=pytest.mark.elasticsearch),
        pytest.param("opensearch", marks=pytest.mark.opensearch),
    ],
)
def many(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Index]:
    place = tmp_path_factory.mktemp("many") / "rows"
    servers = {"elastic": elastic_fakes, "opensearch": opensearch_fakes}
    if server := servers.get(request.param):
        with server.cleaned(), filled(server.address(place), STORED) as index:
            yield index
        return
    with filled(f"lucene:{place}" if request.param == "lucene" else place, STORED) as index:
        yield index


@pytest.mark.parametrize(
    ("fusion", "sizes"),
    [
        (None, (20, 7, 1)),
        (Weighted({"lexical": 0.7, "codes": 0.3}, depth=15), (20, 7)),
        (Weighted({"lexical": 0.7, "codes": 0.3}, "minmax"), (20, 7)),
        (ReciprocalRank(weights={"lexical": 1.0, "codes": 0.5}), (20, 7)),
    ],
    ids=str,
)
def test_pages_neither_repeat_nor_lose_a_hit(many: Index, fusion, sizes) -> None:
    searcher = Searcher(RowEncoder(), many)
    whole = searcher.search(Query(text=TEXT, fusion=fusion, k=len(STORED)))
    assert sorted(hit.id for hit in whole) == sorted(names_of(STORED))
    if fusion is None:
        assert [hit.id for hit in whole] == [
            hit.id for hit in sorted(whole, key=lambda hit: (-hit.score, hit.id))
        ]
    for size in sizes:
        pages = [
            hit
            for offset in range(0, len(STORED), size)
            for hit in searcher.search(Query(text=TEXT, fusion=fusion, k=size, offset=offset))
        ]
        assert pages == whole


def test_copies_score_alike(tmp_path: Path) -> None:
    stored = [{0: 0.5, 3: 0.25}, {0: 0.5, 3: 0.25}, {1: 1.0}, {0: 0.5, 3: 0.25}]
    with filled(tmp_path / "copies.lex", stored) as index:
        hits = Searcher(RowEncoder(), index).search(Query(text="word0:1"))
    assert [hit.id for hit in hits] == ["d00", "d01", "d03"]
    assert len({hit.score for hit in hits}) == 1


class CalibratedEncoder(RowEncoder):
    score_weights = {"lexical": 0.75, "dense": 0.25}  # noqa: RUF012
    relevance = (8.0, -6.0)


def test_relevance(tmp_path: Path) -> None:
    # Of the second document the words say nothing, of the third the dense vector the opposite.
    stored = [{0: 0.875}, {1: 1.0, 0: 0.0625}, {0: 0.25, 3: 1.0}]
    encoder = CalibratedEncoder()
    with filled(tmp_path / "rows.lex", stored) as index:
        searcher = Searcher(encoder, index)
        answer = searcher.answer(Query(text="word0:1"), explain=True)
        assert str(answer.fusion) == "weighted (lexical 0.75, dense 0.25)"
        first, second, third = answer.hits
        assert [hit.id for hit in answer.hits] == ["d00", "d02", "d01"]
        assert first.score == 0.75 * 0.875 + 0.25
        assert first.relevance == pytest.approx(1 / (1 + math.exp(6 - 8 * first.score)))
        assert second.explanation.parts[1].score < 0
        assert (second.score, second.explanation.parts[1].part) == (0.75 * 0.25, 0)
        assert third.relevance < second.relevance < first.relevance
        assert answer.good_match is True
        least = (second.relevance + first.relevance) / 2
        some = searcher.answer(Query(text="word0:1", min_relevance=least))
        assert [hit.id for hit in some.hits] == ["d00"]
        poor = searcher.answer(Query(text="word0:0.125", legs=("lexical", "dense"), offset=1))
        assert poor.good_match is False
        assert searcher.answer(Query(text="word0:0.125", min_relevance=1.0)).hits == []
        # A calibration is of all legs together, and of no others.
        for query in (
            Query(terms={"word0": 1.0}),
            Query(text="word0:1", legs=("dense",)),
            Query(text="word0:1", legs=("lexical", "codes")),
            Query(text="word0:1", fusion="rrf"),
        ):
            answer = searcher.answer(query)
            assert {hit.relevance for hit in answer.hits} == {None}
            assert answer.good_match is None
        with pytest.raises(UnsupportedError, match="min_relevance: scores of lexical are not cal"):
            searcher.search(Query(terms={"word0": 1.0}, min_relevance=0.5))
        # What was fitted for the index comes before what ships with the model.
        save_fusion(index, Weighted({"lexical": 0.5, "dense": 0.5}, calibration=(2.0, 0.0)))
        (hit, *_) = Searcher(encoder, index).search(Query(text="word0:1"))
        assert hit.relevance == pytest.approx(1 / (1 + math.exp(-2 * hit.score)))


def test_words_of_a_text_only_raise_a_relevance(tmp_path: Path) -> None:
    stored, encoder = [{0: 0.875}, {0: 0.25, 3: 1.0}], CalibratedEncoder()
    encoder.score_weights = {**encoder.score_weights, "text": 0.5}
    with filled(tmp_path / "rows.lex", stored) as index:
        alone = Searcher(encoder, index).search(Query(text="word0:1"))
        index.add([Document("told", text="word0")], encoder.only(encode(stored[:1])))
        index.commit()
        told, *others = Searcher(encoder, index).search(Query(text="word0:1"))
    assert [(hit.id, hit.score, hit.relevance) for hit in others] == [
        (hit.id, hit.score, hit.relevance) for hit in alone
    ]
    text = 1 / (1 + 1.2 * (0.25 + 0.75 / 10))  # BM25's share of the best: once, in one word
    assert told.id == "told"
    assert told.score == pytest.approx(alone[0].score + 0.5 * text)
    assert told.relevance == pytest.approx(1 / (1 + math.exp(6 - 8 * told.score)))


def test_a_model_with_weights_that_break_their_rules(tmp_path: Path) -> None:
    encoder = RowEncoder()
    encoder.score_weights = {"words": 1.0}
    with (
        filled(tmp_path / "rows.lex", STORED[:3]) as index,
        pytest.raises(InputError, match="'words': a leg to weigh must be one of"),
    ):
        Searcher(encoder, index)
