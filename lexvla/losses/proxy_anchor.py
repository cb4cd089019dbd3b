"""Proxy-Anchor: each class proxy pulls its items and pushes all others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexvla.losses.precision import at_least_float32, dot_products

__all__ = ["ProxyAnchor"]


class ProxyAnchor(nn.Module):
    """Contrast every proxy with the batch.

    Args:
        classes: Number C of classes, with a learnable proxy each.
        width: Width d of the vectors.
        alpha: Sharpness.
        margin: Positives should exceed it, negatives be below its negative.

    References:
        Kim et al. 2020, "Proxy Anchor Loss for Deep Metric Learning", eq. 4, arXiv 2003.13911.
    """

    def __init__(self, classes: int, width: int, alpha: float = 32.0, margin: float = 0.1) -> None:
        super().__init__()
        if classes < 1 or alpha <= 0:
            raise ValueError(f"{classes} classes, alpha {alpha}: both must be above 0")
        self.alpha = alpha
        self.margin = margin
        self.proxies = nn.Parameter(torch.empty(classes, width))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the mean pull of proxies with an item in the batch plus the mean push of all.

        Args:
            vectors: (N, d) unit vectors of the global batch.
            labels: (N,) long classes.
        """
        proxies = functional.normalize(at_least_float32(self.proxies), dim=1)
        cosines = dot_products(vectors, proxies)
        own = functional.one_hot(labels, len(proxies)).bool()
        pull = _log_one_plus_sum(-self.alpha * (cosines - self.margin), own)
        push = _log_one_plus_sum(self.alpha * (cosines + self.margin), ~own)
        # A proxy without items has a pull of log(1) = 0.
        return pull.sum() / own.any(dim=0).sum() + push.mean()


def _log_one_plus_sum(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return ``log(1 + sum e^x)`` of the chosen logits of each column: (N, C) to (C,)."""
    logits = logits.masked_fill(~chosen, -torch.inf)
    return torch.cat([torch.zeros_like(logits[:1]), logits]).logsumexp(dim=0)
