"""Hybrid search and its explanations over Lucene, whose scores are sums of integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hybrid_fakes import RowEncoder, filled
from indexer_fakes import random_rows
from lexvla.errors import UnsupportedError
from lexvla_indexer.base import Index
from lexvla_search import Query, ReciprocalRank, Searcher, Weighted
from lexvla_search.fusion import named_fusion

pytestmark = pytest.mark.java

ROWS = random_rows(np.random.default_rng(11), 40)
TEXT = "word0:0.9 word3:0.3 word6:0.55 word7:0.2"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with filled(f"lucene:{tmp_path / 'rows.lucene'}", ROWS) as made:
        yield made


@pytest.mark.parametrize(
    "fusion",
    [
        None,
        "lexical",
        "codes",
        ReciprocalRank(weights={"lexical": 1.0, "codes": 0.5}),
        *(Weighted({"lexical": 0.6, "codes": 0.4}, kind) for kind in ("raw", "minmax", "zscore")),
    ],
    ids=str,
)
def test_parts_sum_to_the_score(index: Index, fusion) -> None:
    encoder = RowEncoder()
    searcher = Searcher(encoder, index)
    query = Query(text=TEXT, fusion=fusion, k=40)
    answer = searcher.answer(query, explain=True)
    assert answer.hits
    (found,) = index.search(answer.encoding, 40, "lexical")
    lucene = dict(zip(found.ids, found.scores.tolist(), strict=True))
    bound = float(index.bound(answer.encoding)[0])
    for hit in answer.hits:
        explanation = hit.explanation
        assert explanation.score == hit.score
        assert math.fsum(part.part for part in explanation.parts) == pytest.approx(hit.score)
        if "lexical" in answer.legs and hit.id in lucene:
            assert hit.lexical.score == lucene[hit.id]
            assert abs(explanation.difference) <= bound
            shares = math.fsum(match.part for match in explanation.matches)
            assert shares == pytest.approx(explanation.parts[0].part)
        assert searcher.explain(query, hit.id) == hit


def test_dense_vectors_are_stored_and_not_searched(index: Index) -> None:
    searcher = Searcher(RowEncoder(), index)
    answer = searcher.answer(Query(text=TEXT))
    assert (answer.legs, answer.fusion) == (("lexical",), named_fusion("lexical"))
    named = searcher.answer(Query(text=TEXT, fusion="weighted"))
    assert (named.legs, named.fusion) == (("lexical", "codes"), Weighted())
    for query in (Query(text=TEXT, fusion="dense"), Query(text=TEXT, legs=("lexical", "dense"))):
        with pytest.raises(UnsupportedError, match="store dense vectors and do not search them"):
            searcher.search(query)


def test_bans_and_requirements(index: Index, tmp_path: Path) -> None:
    query = Query(text=TEXT, ban=["word1"], require=["word6"], k=40)
    with filled(tmp_path / "rows.lex", ROWS) as other:
        expected = Searcher(RowEncoder(), other).search(
            Query(text=TEXT, ban=["word1"], require=["word6"], legs=("lexical", "codes"), k=40)
        )
    hits = Searcher(RowEncoder(), index).search(query)
    assert hits
    assert {hit.id for hit in hits} == {hit.id for hit in expected}
