"""Projection of states to dense vectors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DenseHead"]


class DenseHead(nn.Module):
    """Project states of the lexical space to unit vectors: one linear layer, as in TCL.

    Args:
        lexical_width: Width d of the states.
        dense_width: Width of the vectors.
    """

    def __init__(self, lexical_width: int, dense_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(lexical_width, dense_width)

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., d) states to (..., dense_width) float32 unit vectors."""
        states = states.to(self.projection.weight.dtype)
        return functional.normalize(self.projection(states).float(), dim=-1)
