"""Explanations sum to scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from search.explanation import Explanation

VOCABULARY = Vocabulary([f"\u2581w{i}" for i in range(40)])


def row(weights: dict[int, float], patches: bool = False) -> Encoding:
    dense = np.zeros((1, len(VOCABULARY)), dtype=np.float32)
    for column, weight in weights.items():
        dense[0, column] = weight
    lexical = sparse.csr_array(dense)
    return Encoding(lexical, np.arange(lexical.nnz, dtype=np.int16) if patches else None)


weights = st.dictionaries(
    st.integers(0, len(VOCABULARY) - 1),
    st.floats(2**-20, 4, width=32),
    max_size=len(VOCABULARY),
)


@given(weights, weights)
def test_parts_sum_to_the_dot_product(query: dict[int, float], document: dict[int, float]) -> None:
    q, d = row(query), row(document)
    score = float((q.lexical @ d.lexical.T).toarray()[0, 0])
    explanation = Explanation.of(q, d, VOCABULARY, score)
    assert explanation.total() == pytest.approx(score, rel=1e-5)
    assert {m.term for m in explanation.matches} == {
        VOCABULARY.terms[c] for c in query.keys() & document.keys()
    }
    products = [m.product for m in explanation.matches]
    assert products == sorted(products, reverse=True)


def test_matches_carry_weights_and_patches() -> None:
    explanation = Explanation.of(
        row({1: 0.5, 7: 0.5}), row({0: 1.0, 1: 0.25, 7: 0.5}, patches=True), VOCABULARY
    )
    first, second = explanation.matches
    assert (first.term, first.word, first.product, first.patch) == ("\u2581w7", "w7", 0.25, 2)
    assert (second.query_weight, second.document_weight, second.patch) == (0.5, 0.25, 1)
    assert explanation.score == 0.375


def test_plain_values() -> None:
    explanation = Explanation.of(row({1: 0.5}), row({1: 0.5}), VOCABULARY, score=0.25)
    assert json.loads(json.dumps(explanation.to_dict())) == {
        "score": 0.25,
        "fusion": "lexical",
        "parts": [],
        "difference": 0.0,
        "matches": [
            {
                "term": "\u2581w1",
                "word": "w1",
                "query_weight": 0.5,
                "document_weight": 0.5,
                "product": 0.25,
                "patch": None,
                "part": 0.25,
            }
        ],
    }


def test_text() -> None:
    explanation = Explanation.of(
        row({1: 0.5, 22: 1.0}), row({1: 0.5, 22: 0.5}, patches=True), VOCABULARY
    )
    assert str(explanation).splitlines() == [
        "word   query    item  product  patch",
        "w22   1.0000  0.5000   0.5000      1",
        "w1    0.5000  0.5000   0.2500      0",
        "sum                    0.7500",
    ]
    assert explanation.table(top=1).splitlines()[1:] == [
        "w22      1.0000  0.5000   0.5000      1",
        "+1 more                   0.2500",
        "sum                       0.7500",
    ]
    assert explanation.summary() == "w22 0.500  w1 0.250"
    assert explanation.summary(top=1) == "w22 0.500  +1 more 0.250"


def test_nothing_in_common() -> None:
    explanation = Explanation.of(row({1: 0.5}), row({2: 0.5}), VOCABULARY)
    assert explanation.matches == ()
    assert explanation.total() == 0
    assert str(explanation) == "no word in common: score 0"
