from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lexvla.codebook import Codebook, top_codes
from lexvla.dense_head import DenseHead


def test_assignment_is_a_softmax_of_cosines() -> None:
    codebook = Codebook(2, 2, temperature=0.5)
    with torch.no_grad():
        codebook.codes.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.25]]))  # length does not matter
        found = codebook(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    one = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)
    two = math.exp(1.2) / (math.exp(1.2) + math.exp(1.6))
    torch.testing.assert_close(found, torch.tensor([[one, 1 - one], [two, 1 - two]]))


def test_codes_start_as_unit_vectors() -> None:
    torch.testing.assert_close(Codebook(5, 3, 1.0).codes.norm(dim=1), torch.ones(5))


def test_the_most_probable_codes_are_kept() -> None:
    rows = torch.tensor([[0.25, 0.5, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0]])
    assert top_codes(rows, 2).toarray().tolist() == [[0.25, 0.5, 0, 0], [1, 0, 0, 0]]
    assert np.diff(top_codes(rows, 2).indptr).tolist() == [2, 1]
    assert top_codes(rows, 9).toarray().tolist() == rows.tolist()


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_kept_codes_are_canonical_and_the_largest(
    rows: int, size: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, size, generator=generator).softmax(dim=1)
    kept = top_codes(dense, count)
    assert kept.has_canonical_format
    assert kept.dtype == np.float32
    assert np.diff(kept.indptr).tolist() == [min(count, size)] * rows
    best = -np.sort(-dense.numpy(), axis=1)[:, :count]
    np.testing.assert_allclose(kept.sum(axis=1), best.sum(axis=1), rtol=1e-5)


def test_dense_vectors_are_unit_float32_in_any_precision() -> None:
    head = DenseHead(4, 3)
    for dtype in (torch.float32, torch.bfloat16):
        vectors = head.to(dtype)(torch.randn(2, 5, 4))
        assert vectors.shape == (2, 5, 3)
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 5))
