"""The dense codebook: a learnt dictionary that images and texts share (CODIS)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Codebook", "top_codes"]


class Codebook(nn.Module):
    """Assign dense vectors to codes, softly (Duan et al., CVPR 2022, arXiv 2203.00048).

    Args:
        size: Number K of codes.
        width: Width of the dense vectors.
        temperature: Divides the cosines before the softmax.
    """

    def __init__(self, size: int, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.codes = nn.Parameter(functional.normalize(torch.randn(size, width), dim=1))

    def forward(self, dense: Tensor) -> Tensor:
        """Map unit vectors (n, width) to float32 probabilities of the codes (n, K)."""
        codes = functional.normalize(self.codes.float(), dim=1)
        return (dense.float() @ codes.T / self.temperature).softmax(dim=1)


def top_codes(assignment: Tensor, count: int) -> sparse.csr_array:
    """Keep the ``count`` most probable codes of each row, with their probabilities.

    Args:
        assignment: (n, K) probabilities, on any device.
        count: Codes to keep; all K where it is larger.

    Returns:
        (n, K) float32 CSR, sorted, each row summing to at most 1.
    """
    rows, size = assignment.shape
    best = assignment.topk(min(count, size), dim=1)
    columns, order = best.indices.sort(dim=1)
    weights = best.values.gather(1, order).float().cpu().numpy()
    kept = weights > 0  # a code far away may have probability 0 in 32 bits
    starts = np.concatenate([[0], kept.sum(axis=1).cumsum()]).astype(np.int32)
    indices = columns.cpu().numpy().astype(np.int32)[kept]
    return sparse.csr_array((weights[kept], indices, starts), shape=(rows, size))
