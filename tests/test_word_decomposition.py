from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from lexvla.word_decomposition import decompose


def value(weights: torch.Tensor, x: torch.Tensor, words: torch.Tensor, limit: torch.Tensor):
    return ((x - weights @ words) ** 2).sum(1) / 2 + limit * weights.sum(1)


def by_plain_descent(x: torch.Tensor, words: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    weights = torch.zeros(len(x), len(words))
    step = 1 / torch.linalg.matrix_norm(words, 2) ** 2
    for _ in range(3000):
        weights = (weights - ((weights @ words - x) @ words.T + limit[:, None]) * step).clamp(min=0)
    return weights


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=st.sampled_from([0.05, 0.3, 0.8]))
def test_the_lasso_is_solved(seed: int, penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = normalize(torch.randn(30, 8, generator=generator), dim=1)
    x = normalize(torch.randn(3, 8, generator=generator), dim=1)
    limit = penalty * (x @ words.T).amax(1).clamp(min=0)
    found = decompose(x, words, penalty, most=30)
    assert (found >= 0).all()
    best = value(by_plain_descent(x, words, limit), x, words, limit)
    torch.testing.assert_close(value(found, x, words, limit), best, rtol=0, atol=1e-3)


def test_words_behind_the_first_candidates_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    words = normalize(torch.randn(200, 16, generator=generator), dim=1)
    x = normalize(torch.randn(4, 16, generator=generator), dim=1)
    whole = decompose(x, words, 0.1, most=200)
    monkeypatch.setattr("lexvla.word_decomposition._CANDIDATES", 24)
    limit = 0.1 * (x @ words.T).amax(1)
    parts = decompose(x, words, 0.1, most=200)
    torch.testing.assert_close(
        value(parts, x, words, limit), value(whole, x, words, limit), rtol=0, atol=2e-3
    )


def test_exact_sums_of_orthogonal_words() -> None:
    # By hand: each cosine less the penalty, which is half of the largest.
    x = torch.tensor([[0.8, 0.6, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = decompose(x, torch.eye(3), 0.5, most=3)
    expected = torch.tensor([[0.4, 0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        decompose(x[:1], torch.eye(3), 0.5, most=1), torch.tensor([[0.4, 0.0, 0.0]])
    )
