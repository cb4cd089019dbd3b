"""Sparse rows by numpy: those that torch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexvla import codebook, lexical_head
from lexvla.sparse_rows import elu1p, lexical_vector, sparsify, top_codes

logits = arrays(np.float32, (3, 7), elements=st.integers(-8, 8).map(lambda n: n / 4))
apart = arrays(np.float32, (3, 7), elements=st.integers(-40, 40).map(lambda n: n / 8), unique=True)
rules = st.sampled_from([("mean", 0, 0.0), ("top_k", 3, 0.0), ("threshold", 0, 0.3)])


def test_elu1p() -> None:
    found = elu1p(np.array([[-1, 0, 2]], np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[np.exp(-1), 1, 3]], rtol=1e-6)


def test_a_row_of_zeros_stays() -> None:
    rows = sparsify(np.zeros((2, 4), np.float32), "mean", 0, 0.0)
    assert rows.nnz == 0
    assert rows.shape == (2, 4)


def test_the_first_of_equal_words_are_kept() -> None:
    vectors = np.array([[0.1, 0.5, 0.7, 0.5, 0.5, 0.1]], np.float32)
    for kept in (
        sparsify(vectors, "top_k", 3, 0.0),
        lexical_head.sparsify(torch.from_numpy(vectors), "top_k", 3, 0.0),
    ):
        assert kept.indices.tolist() == [1, 2, 3]
        np.testing.assert_allclose(kept.data, np.array([0.5, 0.7, 0.5]) / 0.99**0.5, rtol=1e-6)


def test_an_unknown_rule() -> None:
    with pytest.raises(ValueError, match="unknown sparsification 'most'"):
        sparsify(np.ones((1, 2), np.float32), "most", 1, 0.0)


@given(logits, rules, st.none() | st.integers(1, 8))
def test_as_torch_does(rows: np.ndarray, rule: tuple[str, int, float], limit: int | None) -> None:
    vectors, same = lexical_vector(rows), lexical_head.lexical_vector(torch.from_numpy(rows))
    np.testing.assert_allclose(vectors, same.numpy(), rtol=1e-5)
    # The same vectors, so that rounding decides nothing.
    found = sparsify(vectors, *rule, limit)
    expected = lexical_head.sparsify(torch.from_numpy(vectors), *rule, limit)
    assert found.dtype == np.float32
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.indptr.tolist() == expected.indptr.tolist()
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-5)


@given(apart, st.integers(1, 9))  # of equal codes torch keeps any
def test_codes_as_torch_does(rows: np.ndarray, count: int) -> None:
    probabilities = torch.from_numpy(rows).softmax(dim=1)
    found = top_codes(probabilities.numpy(), count)
    expected = codebook.top_codes(probabilities, count)
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.indptr.tolist() == expected.indptr.tolist()
    np.testing.assert_array_equal(found.data, expected.data)
