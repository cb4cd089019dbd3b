"""Measures against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import sparse

from lexvla_search.evaluation import ndcg_at_k, precision_at_k, ranks, recall_at_k

SCORES = np.array(
    [
        [0.9, 0.5, 0.1],  # own item 0 is first
        [0.7, 0.7, 0.1],  # own item 1 ties with item 0: second, against
        [0.3, 0.2, 0.1],  # own item 2 is last
    ]
)


def test_ranks_count_ties_against() -> None:
    assert ranks(SCORES, [0, 1, 2]).tolist() == [1, 2, 3]


def test_recall() -> None:
    assert recall_at_k(SCORES, [0, 1, 2], [1, 2, 3]) == {1: 1 / 3, 2: 2 / 3, 3: 1.0}


def test_a_constant_score_finds_nothing() -> None:
    assert recall_at_k(np.ones((3, 3)), [0, 1, 2], [1, 2]) == {1: 0.0, 2: 0.0}


def test_an_item_not_retrieved_is_not_found_at_any_depth() -> None:
    scores = sparse.csr_array(np.array([[0.0, 0.4, 0.0], [0.0, 0.0, 0.0]]))
    assert ranks(scores, [0, 1]).tolist() == [math.inf, math.inf]
    assert recall_at_k(scores, [1, 1], [3]) == {3: 0.5}
    dense = np.array([[-np.inf, 0.4], [np.nan, -1.0]])
    assert ranks(dense, [0, 1]).tolist() == [math.inf, 1]


def test_sparse_and_dense_agree_where_all_is_stored() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 5, size=(20, 20)).astype(float)
    own = rng.integers(0, 20, size=20)
    assert (ranks(scores, own) == ranks(sparse.csr_array(scores), own)).all()


def test_recall_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 relevant items for 3 queries"):
        recall_at_k(SCORES, [0, 1], [1])
    with pytest.raises(ValueError, match="outside the 3 items"):
        recall_at_k(SCORES, [0, 1, 3], [1])
    with pytest.raises(ValueError, match="no queries"):
        recall_at_k(np.empty((0, 3)), [], [1])


def test_ndcg_and_precision_of_one_query() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    relevant = np.array([[True, False, True, False]])
    ideal = 1 + 1 / math.log2(3)
    assert ndcg_at_k(scores, relevant, 3) == pytest.approx((1 + 1 / math.log2(4)) / ideal)
    assert ndcg_at_k(scores, relevant, 1) == 1.0
    assert precision_at_k(scores, relevant, 2) == 0.5
    assert precision_at_k(scores, relevant, 10) == 0.2  # out of k, though there are four items


def test_a_tie_puts_the_relevant_item_last() -> None:
    scores = np.array([[0.5, 0.5, 0.5, 0.1]])
    relevant = np.array([[True, False, False, False]])
    assert ndcg_at_k(scores, relevant, 3) == pytest.approx(1 / math.log2(4))
    assert ndcg_at_k(scores, relevant, 2) == 0.0
    assert precision_at_k(scores, relevant, 2) == 0.0


def test_an_unanswered_query_counts_zero() -> None:
    scores = sparse.csr_array(np.array([[0.5, 0.0], [0.0, 0.0]]))
    relevant = np.array([[True, False], [True, True]])
    assert ndcg_at_k(scores, relevant, 2) == 0.5
    assert precision_at_k(scores, relevant, 2) == 0.25


def test_many_relevant_items_cannot_raise_the_ideal_above_k() -> None:
    scores = np.arange(20.0)[None]
    assert ndcg_at_k(scores, np.ones((1, 20), dtype=bool), 5) == pytest.approx(1.0)


def test_relevance_must_fit() -> None:
    with pytest.raises(ValueError, match="each query must have a relevant item"):
        ndcg_at_k(SCORES, np.zeros((3, 3), dtype=bool), 2)
    with pytest.raises(ValueError, match="shape"):
        precision_at_k(SCORES, np.ones((2, 3), dtype=bool), 2)
    with pytest.raises(ValueError, match="k must be at least 1"):
        precision_at_k(SCORES, np.ones((3, 3), dtype=bool), 0)
