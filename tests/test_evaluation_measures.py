"""Measures against trec_eval and by hand; significance against all permutations and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lexvla.errors import GatheredInputError, InputError
from lexvla_search.evaluation.measures import deepest, measure, parse_measures, recall_curve
from lexvla_search.evaluation.significance import compare, holm, paired_randomisation, paired_t

WHY = "needs ir-measures: pip install 'lexvla[evaluation]'"
pytest.importorskip("ir_measures", reason=WHY)
pytrec_eval = pytest.importorskip("pytrec_eval", reason=WHY)

OURS_TO_TREC = {
    "R@5": "recall_5",
    "nDCG@10": "ndcg_cut_10",
    "nDCG": "ndcg",
    "AP": "map",
    "RR": "recip_rank",
    "P@5": "P_5",
    "Success@1": "success_1",
    "Rprec": "Rprec",
}
NAMES = st.text("abcé7", min_size=1, max_size=3)
QUERIES = st.sampled_from(["q1", "q2", "q3", "q4"])
QRELS = st.dictionaries(QUERIES, st.dictionaries(NAMES, st.integers(0, 3), min_size=1), min_size=1)
# Few scores, so that many are equal, and some that only float32 holds for equal.
SCORES = st.sampled_from([0.25, 0.5, 1.0, 1.0 + 1e-12, -2.0]) | st.floats(-1e6, 1e6)
RUNS = st.dictionaries(QUERIES, st.dictionaries(NAMES, SCORES, max_size=25))


@given(QRELS, RUNS)
def test_measures_are_those_of_trec_eval(qrels, run) -> None:
    measured = measure(run, qrels, list(OURS_TO_TREC))
    evaluator = pytrec_eval.RelevanceEvaluator(
        qrels, {"recall.5", "ndcg_cut.10", "ndcg", "map", "recip_rank", "P.5", "success.1", "Rprec"}
    )
    theirs = evaluator.evaluate({query: scores for query, scores in run.items() if scores})
    for ours, name in OURS_TO_TREC.items():
        expected = {query: theirs.get(query, {}).get(name, 0.0) for query in qrels}
        assert measured.per_query[ours] == pytest.approx(expected, abs=1e-9)
        assert measured.mean[ours] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)
    curve = recall_curve(run, qrels, 5)
    assert curve[4] == pytest.approx(measured.mean["R@5"], abs=1e-9)
    assert curve == sorted(curve)


def test_an_unanswered_query_counts_0_and_an_unjudged_one_nothing() -> None:
    qrels = {"a": {"x": 1}, "b": {"x": 1}}
    run = {"a": {"x": 2.0, "y": 1.0}, "c": {"x": 1.0}}
    measured = measure(run, qrels, ["R@1", "RR@10"])
    assert measured.mean == {"R@1": 0.5, "RR@10": 0.5}
    assert measured.per_query["R@1"] == {"a": 1.0, "b": 0.0}


def test_equal_scores_stand_by_id_descending_for_every_measure() -> None:
    measured = measure({"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1}}, ["RR", "RR@10", "R@1"])
    assert measured.mean == {"RR": 0.5, "RR@10": 0.5, "R@1": 0.0}


def test_a_curve_by_hand() -> None:
    run = {"a": {"x": 4.0, "w": 3.0, "y": 2.0}, "b": {"x": 1.0}}
    qrels = {"a": {"x": 1, "y": 2, "z": 1, "w": 0}, "b": {"y": 1}, "c": {"x": 1}, "d": {"x": 0}}
    assert recall_curve(run, qrels, 4) == pytest.approx([1 / 12, 1 / 12, 2 / 12, 2 / 12])


def test_measures_are_parsed_and_each_kept_once() -> None:
    assert parse_measures("R@1  nDCG@10 R@1") == ["R@1", "nDCG@10"]
    assert parse_measures(["AP", "P@5 RR"]) == ["AP", "P@5", "RR"]
    assert deepest(["AP"]) == 0
    assert deepest(["R@5", "nDCG@20", "RR"]) == 20


def test_all_unknown_measures_are_told_at_once() -> None:
    with pytest.raises(GatheredInputError) as caught:
        parse_measures("R@1 F99 nDCG@ R@0 nDCG@1.5")
    assert [error.item for error in caught.value.errors] == ["F99", "nDCG@", "R@0", "nDCG@1.5"]
    with pytest.raises(InputError, match="names no measure"):
        parse_measures("  ")


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="which is not finite"):
        measure({"q": {"a": float("nan")}}, {"q": {"a": 1}}, ["R@1"])
    with pytest.raises(InputError, match="are empty"):
        measure({}, {}, ["R@1"])


VALUES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=10)


@given(VALUES)
def test_few_queries_are_permuted_in_all_ways(pairs) -> None:
    first, second = [a / 4 for a, _ in pairs], [b / 4 for _, b in pairs]
    differences = [a - b for a, b in pairs]
    ways = list(itertools.product((-1, 1), repeat=len(pairs)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in ways]
    expected = sum(total >= abs(sum(differences)) for total in sums) / len(ways)
    assert paired_randomisation(first, second) == pytest.approx(expected, abs=1e-12)


def test_many_queries_are_permuted_at_random_around_the_exact_p() -> None:
    # 60 queries differ by 1, of them 38 one way: the p is that of a two-sided sign test.
    first, second = [1.0] * 38 + [0.0] * 22 + [1.0] * 40, [0.0] * 38 + [1.0] * 22 + [1.0] * 40
    exact = stats.binomtest(38, 60).pvalue
    assert paired_randomisation(first, second) == pytest.approx(exact, abs=0.004)
    assert paired_randomisation(first, second) == paired_randomisation(first, second)
    assert paired_randomisation([1.0] * 500, [0.0] * 500) == pytest.approx(1 / 100_001)


def test_the_t_test_is_that_of_scipy() -> None:
    random = np.random.default_rng(3)
    first, second = random.random(20), random.random(20)
    assert paired_t(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert paired_t([1.0, 0.5], [1.0, 0.5]) == 1.0
    assert paired_t([1.0, 0.5], [0.5, 0.0]) == 0.0


def test_holm_by_hand() -> None:
    # 4 x 0.01, then 3 x 0.02, 2 x 0.03 no lower than that, then 0.5.
    assert holm([0.5, 0.02, 0.01, 0.03]) == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_systems_are_compared_and_corrected_together() -> None:
    baseline = {f"q{i}": 0.0 for i in range(8)}
    better = dict.fromkeys(baseline, 1.0)
    found = compare({"better": better, "same": dict(baseline)}, baseline)
    assert found["better"] == (1.0, 2 / 256, 4 / 256)
    assert found["same"] == (0.0, 1.0, 1.0)
    assert compare({"better": better}, baseline, "t")["better"].p == 0.0
    with pytest.raises(ValueError, match="different queries"):
        compare({"other": {"q0": 1.0}}, baseline)
