"""Vectors as sparse sums of words: the non-negative lasso of SpLiCE, by FISTA."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["decompose"]

_CANDIDATES = 256  # words of a vector that a round works on
_ROUNDS = 6
_STEPS = 120
_TOLERANCE = 1e-3


def decompose(vectors: Tensor, words: Tensor, penalty: float, most: int) -> Tensor:
    """Write unit vectors as sparse non-negative sums of unit vectors of words.

    Minimise |x - z C|^2 / 2 + λ |z|_1 over z >= 0, where λ is ``penalty`` times the largest cosine
    of x with a word. Each round solves for the words that the residual calls for, until no other
    word would lower the sum.

    Args:
        vectors: (B, d).
        words: (V, d), of the same dtype and device.
        penalty: From 0 to 1; at 1 no word is left.
        most: Words kept of a vector; where the lasso has more, the heaviest are fitted again.

    Returns:
        (B, V) weights; a row is zero if no word points towards its vector.

    References:
        Bhalla et al.: Interpreting CLIP with sparse linear concept embeddings (SpLiCE). NeurIPS
        2024, arXiv 2402.10376.
        Beck, Teboulle: A fast iterative shrinkage-thresholding algorithm. SIAM J. Imaging
        Sciences 2009.
    """
    count = min(_CANDIDATES, len(words))
    weights = vectors.new_zeros(len(vectors), len(words))
    left = vectors @ words.T
    limit = penalty * left.amax(1, keepdim=True).clamp(min=0)
    for _ in range(_ROUNDS):
        rank = torch.where(weights > 0, torch.inf, left)
        chosen = rank.topk(count, dim=1).indices
        weights = _solve(vectors, words, chosen, limit, weights)
        left = (vectors - weights @ words) @ words.T
        if not ((left > limit * (1 + _TOLERANCE) + _TOLERANCE) & (weights == 0)).any():
            break
    if int((weights > 0).sum(1).amax()) <= most:
        return weights
    kept = weights.topk(min(most, len(words)), dim=1).indices
    start = torch.zeros_like(weights).scatter(1, kept, weights.gather(1, kept))
    return _solve(vectors, words, kept, limit, start) * (start > 0)


def _solve(x: Tensor, words: Tensor, chosen: Tensor, limit: Tensor, start: Tensor) -> Tensor:
    """Run FISTA on (B, K) chosen words of each row, from (B, V) weights; return (B, V)."""
    part = words[chosen]
    gram = part @ part.mT
    aim = (part @ x[..., None])[..., 0] - limit
    # The largest row sum bounds the largest eigenvalue, and with it a safe step.
    step = 1 / gram.abs().sum(2).amax(1, keepdim=True)
    weights = moved = start.gather(1, chosen)
    momentum = 1.0
    for _ in range(_STEPS):
        slope = (gram @ moved[..., None])[..., 0] - aim
        now = (moved - step * slope).clamp(min=0)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        moved = now + (momentum - 1) / following * (now - weights)
        weights, momentum = now, following
    return torch.zeros_like(start).scatter(1, chosen, weights)
