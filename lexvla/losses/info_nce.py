"""Contrast with a learnable temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["InfoNCE"]


class InfoNCE(nn.Module):
    """Pull each row towards its positives among the columns (LexVLA eq. 5, one direction).

    Args:
        temperature: Where the learnable temperature starts; 1/temperature is capped at 100.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, similarity: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of ``softmax(similarity / temperature)``.

        Args:
            similarity: (N, M) dot products of N unit vectors with M.
            targets: (N,) long, the column of each row's positive; or (N, M) float distributions
                over the columns where several are.
        """
        scale = self.log_scale.exp().clamp(max=100.0)
        return nn.functional.cross_entropy(similarity.float() * scale, targets)
