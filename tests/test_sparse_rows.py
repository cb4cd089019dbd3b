"""Sparse rows by numpy: those that torch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexvla import lexical_head
from lexvla.sparse_rows import elu1p, lexical_vector, sparsify, top_codes

logits = arrays(np.float32, (3, 7), elements=st.integers(-8, 8).map(lambda n: n / 4))
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


@pytest.mark.parametrize("limit", [0, -1])
def test_an_item_may_keep_one_word_at_least(limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_active_dims must be at least 1, not {limit}"):
        sparsify(np.ones((1, 2), np.float32), "mean", 1, 0.0, limit)


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


def test_the_most_probable_codes_are_kept() -> None:
    rows = np.array([[0.25, 0.5, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0]], np.float32)
    assert top_codes(rows, 2).toarray().tolist() == [[0.25, 0.5, 0, 0], [1, 0, 0, 0]]
    assert np.diff(top_codes(rows, 2).indptr).tolist() == [2, 1]
    assert top_codes(rows, 9).toarray().tolist() == rows.tolist()


def test_the_first_of_equal_codes_are_kept() -> None:
    rows = np.array([[0.125, 0.25, 0.25, 0.125, 0.25], [0.2] * 5], np.float32)
    assert top_codes(rows, 2).indices.tolist() == [1, 2, 0, 1]
    assert top_codes(rows, 4).indices.tolist() == [0, 1, 2, 4, 0, 1, 2, 3]


@given(logits, st.integers(1, 9))
def test_codes_are_the_heaviest_of_each_row(rows: np.ndarray, count: int) -> None:
    shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    found = top_codes(shares, count)
    assert found.has_canonical_format
    assert found.dtype == np.float32
    for row, own in enumerate(shares.tolist()):
        best = sorted(sorted(range(7), key=lambda column: (-own[column], column))[:count])
        span = slice(*found.indptr[row : row + 2].tolist())
        assert found.indices[span].tolist() == best
        assert found.data[span].tolist() == [own[column] for column in best]
