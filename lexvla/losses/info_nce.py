"""InfoNCE with a learnable temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lexvla.losses.precision import at_least_float32

__all__ = ["CLIP_LIMITS", "TCL_LIMITS", "InfoNCE", "shares"]

CLIP_LIMITS = (0.01, math.inf)  # 1/temperature is at most 100
TCL_LIMITS = (0.001, 0.5)


class InfoNCE(nn.Module):
    """Pull each row towards its positives among the columns (LexVLA eq. 5, one direction).

    Args:
        temperature: Initial value of the learnable temperature.
        limits: Smallest and largest temperature: `CLIP_LIMITS` or `TCL_LIMITS`.

    References:
        Radford et al. 2021 (CLIP), arXiv 2103.00020; Yang et al. 2022 (TCL), arXiv 2202.10401.
    """

    def __init__(
        self, temperature: float = 0.07, limits: tuple[float, float] = CLIP_LIMITS
    ) -> None:
        super().__init__()
        if not 0 < limits[0] <= limits[1]:
            raise ValueError(f"limits {limits}: 0 < smallest <= largest is needed")
        self.limits = limits
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """The temperature within its limits, with its gradient, for other losses."""
        return 1 / self._scale()

    def _scale(self) -> Tensor:
        smallest, largest = self.limits
        return self.log_scale.exp().clamp(1 / largest, 1 / smallest)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the parameter back within the limits; call it after a step (CLIP, TCL).

        Outside the limits the loss is flat in the temperature, so the parameter would stay there.
        """
        smallest, largest = self.limits
        self.log_scale.clamp_(-math.log(largest), -math.log(smallest))

    def forward(self, similarity: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of ``softmax(similarity / temperature)``.

        Args:
            similarity: (N, M) dot products of unit vectors, of all processes: gather them first.
            targets: (N,) long, the column of each row's positive; or (N, M) float distributions
                over several.
        """
        logits = at_least_float32(similarity) * self._scale()
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)
        return nn.functional.cross_entropy(logits, targets)

    def symmetric(self, similarity: Tensor, positives: Tensor | None = None) -> Tensor:
        """Return the sum of both directions (the first two terms of LexVLA eq. 8).

        Args:
            similarity: (N, M), as in `forward`; the second direction reads it by columns.
            positives: (N, M) weights >= 0 of pairs that belong together, normalised by row and by
                column; rows or columns of zeros add nothing. By default the diagonal.
        """
        rows, columns = similarity.shape
        if positives is None:
            if rows != columns:
                raise ValueError(f"({rows}, {columns}) has no diagonal of pairs: give positives")
            own = torch.arange(rows, device=similarity.device)
            return self(similarity, own) + self(similarity.T, own)
        return self(similarity, shares(positives)) + self(similarity.T, shares(positives.T))


def shares(weights: Tensor) -> Tensor:
    """Normalise rows of weights (N, M) >= 0 to a sum of 1; rows of zeros stay."""
    weights = at_least_float32(weights)
    total = weights.sum(dim=1, keepdim=True)
    return weights / total.where(total > 0, torch.ones_like(total))
