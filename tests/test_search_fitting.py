"""Fusions learned from judged queries, and kept with their index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hybrid_fakes import RowEncoder, filled
from lexvla.errors import IndexCorruptError, IndexVersionError, InputError, UnsupportedError
from lexvla_indexer.base import Index
from lexvla_search import (
    Query,
    ReciprocalRank,
    Searcher,
    Weighted,
    fit_fusion,
    fit_relevance,
    load_fusion,
    save_fusion,
)
from lexvla_search.fitting import _gains, _measure

# Of each query the first row is relevant: the words prefer the second, the dense vectors the first.
ROWS = [row for word in (6, 7, 8, 9, 10, 11) for row in ({0: 1.0, word: 0.25}, {1: 1.0, word: 1.0})]
QUERIES = {f"q{word}": f"word0:0.0625 word{word}:1" for word in (6, 7, 8, 9, 10, 11)}
QRELS = {f"q{word}": {f"d{2 * i:02}": 1} for i, word in enumerate((6, 7, 8, 9, 10, 11))}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with filled(tmp_path / "rows.lex", ROWS, ENCODER) as made:
        yield made


ENCODER = RowEncoder(("lexical", "dense"))


def test_the_better_leg_gets_the_weight(index: Index) -> None:
    searcher = Searcher(ENCODER, index)
    searcher.default = Weighted({"lexical": 0.9, "dense": 0.1})
    fitted = fit_fusion(searcher, QUERIES, QRELS, "R@1")
    assert (fitted.learned_on, fitted.tested_on, fitted.errors) == (3, 3, ())
    assert fitted.others["lexical"] == 0
    assert fitted.value == 1
    assert isinstance(fitted.fusion, Weighted)
    weights = fitted.fusion.weights
    assert weights["lexical"] + weights["dense"] == pytest.approx(1)
    assert fitted.gain == 1 - fitted.others["default"] > 0
    slope, intercept = fitted.fusion.calibration
    assert slope > 0 > intercept
    for name, text in QUERIES.items():
        (hit,) = searcher.search(Query(text=text, fusion=fitted.fusion), k=1)
        assert {hit.id: 1} == QRELS[name]


def test_of_equal_fusions_the_most_even(index: Index) -> None:
    anything = {name: {f"d{i:02}": 1 for i in range(12)} for name in QUERIES}
    fitted = fit_fusion(Searcher(ENCODER, index), QUERIES, anything, "RR@10")
    # Where all is relevant, no score tells right from wrong.
    assert fitted.fusion == Weighted({"lexical": 0.5, "dense": 0.5})
    assert (fitted.value, fitted.gain) == (1, 0)
    assert set(fitted.others) == {"lexical", "dense", "rrf", "minmax", "default"}


def test_the_default_is_that_of_the_model(index: Index) -> None:
    searcher = Searcher(ENCODER, index)
    save_fusion(index, ReciprocalRank())  # what is stored is not what a new one must beat
    searcher = Searcher(ENCODER, index)
    searcher.default = Weighted({"lexical": 0.05, "dense": 0.95})
    fitted = fit_fusion(searcher, QUERIES, QRELS, "R@1")
    assert fitted.others["default"] == 1
    assert fitted.gain == 0


def test_the_halves_do_not_hang_on_the_order(index: Index) -> None:
    searcher = Searcher(ENCODER, index)
    backwards = dict(reversed(QUERIES.items()))
    mine, yours = (fit_fusion(searcher, q, QRELS, "nDCG@3") for q in (QUERIES, backwards))
    assert mine == yours


def test_what_cannot_be_asked_counts_nothing(index: Index) -> None:
    queries = {**QUERIES, "q11": Query(text="word0:1", ban=["zebra"]), "unjudged": "word0:1"}
    fitted = fit_fusion(Searcher(ENCODER, index), queries, QRELS, "R@1")
    assert [error.item for error in fitted.errors] == ["zebra"]
    assert fitted.learned_on + fitted.tested_on == 6
    assert "counts 0: 'zebra': the vocabulary has no such word" in str(fitted)
    data = json.loads(json.dumps(fitted.to_dict()))
    assert data["gain"] == fitted.gain
    assert data["fusion"] == fitted.fusion.to_dict()


def test_too_little_to_learn_from(index: Index, tmp_path: Path) -> None:
    searcher = Searcher(ENCODER, index)
    few = {name: QRELS[name] for name in list(QRELS)[:3]}
    with pytest.raises(InputError, match="at least 4 queries must have a relevant document, not 3"):
        fit_fusion(searcher, QUERIES, few)
    with pytest.raises(InputError, match="not 0"):
        fit_fusion(searcher, QUERIES, {name: {"d00": 0} for name in QUERIES})
    with pytest.raises(InputError, match="'MAP': is not a measure to fit by"):
        fit_fusion(searcher, QUERIES, QRELS, "MAP")
    words = RowEncoder(("lexical",))
    with (
        filled(tmp_path / "words.lex", ROWS, words) as one_leg,
        pytest.raises(UnsupportedError, match="must have two legs, not lexical"),
    ):
        fit_fusion(Searcher(words, one_leg), QUERIES, QRELS)


def test_measures_are_those_of_trec_eval() -> None:
    pytest.importorskip("ir_measures", reason="needs ir-measures: pip install 'lexvla[evaluation]'")
    from lexvla_search.evaluation.measures import measure

    ranked = ["a", "b", "c", "d", "e", "f"]
    judged = {"b": 1, "c": 3, "f": 2, "x": 2, "d": 0, "e": -1}
    run = {"q": {name: float(10 - i) for i, name in enumerate(ranked)}}
    for name in ("R@1", "R@3", "R@10", "nDCG@2", "nDCG@5", "nDCG@10", "RR@1", "RR@10"):
        expected = measure(run, {"q": judged}, [name]).mean[name]
        assert _measure(name)(_gains(ranked, judged), judged) == pytest.approx(expected)


def test_relevance_of_arrays() -> None:
    rng = np.random.default_rng(5)
    scores = rng.uniform(0, 1, (200, 100))
    right = rng.uniform(size=scores.shape) < 1 / (1 + np.exp(6 - 10 * scores))
    slope, intercept = fit_relevance(scores, right)
    assert slope == pytest.approx(10, rel=0.05)
    assert intercept == pytest.approx(-6, rel=0.05)
    # The mean relevance is the share of right pairs.
    mean = (1 / (1 + np.exp(-slope * scores - intercept))).mean()
    assert mean == pytest.approx(right.mean(), abs=1e-3)


def test_scores_that_separate_right_from_wrong_have_a_finite_slope() -> None:
    slope, intercept = fit_relevance(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]))
    # Platt's targets are 1/4 and 3/4: the middle is even.
    assert slope * 0.5 + intercept == pytest.approx(0, abs=1e-4)
    assert 1 < slope < 10


@pytest.mark.parametrize("right", [[0, 0, 0], [1, 1, 1], [1, 0, 0]])
def test_pairs_that_tell_nothing(right: list[int]) -> None:
    with pytest.raises(InputError, match="the judgements"):
        fit_relevance(np.array([0.1, 0.5, 0.9]), np.array(right))


def test_kept_with_the_index(index: Index) -> None:
    assert load_fusion(index) is None
    for fusion in (Weighted({"lexical": 0.25, "dense": 0.75}), ReciprocalRank(10)):
        save_fusion(index, fusion, {"measure": "R@1"})
        assert load_fusion(index) == fusion
    assert index.directory is not None
    data = json.loads((index.directory / "fusion.json").read_text())
    assert (data["format_version"], data["facts"]) == (1, {"measure": "R@1"})
    assert not list(index.directory.glob("*.tmp"))
    save_fusion(index, None)
    assert load_fusion(index) is None
    save_fusion(index, None)
    save_fusion(index, ReciprocalRank(10))
    # It is no part of the index itself.
    index.delete(["d00"])
    index.compact()
    assert (load_fusion(index), index.verify()) == (ReciprocalRank(10), [])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 1, "fusion": {"name": "best"}}'],
)
def test_a_damaged_file(index: Index, text: str) -> None:
    assert index.directory is not None
    (index.directory / "fusion.json").write_text(text)
    with pytest.raises(IndexCorruptError, match="no readable fusion"):
        Searcher(ENCODER, index)


def test_a_newer_file(index: Index) -> None:
    assert index.directory is not None
    (index.directory / "fusion.json").write_text('{"format_version": 2, "fusion": {}}')
    with pytest.raises(IndexVersionError, match="fusion format 2 is newer than this program"):
        load_fusion(index)


def test_an_index_on_a_server(index: Index) -> None:
    index.directory = None
    assert load_fusion(index) is None
    with pytest.raises(UnsupportedError, match="keeps no notes"):
        save_fusion(index, ReciprocalRank())
