"""Proxy-NCA: each item is pulled to its class's proxy and pushed from the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexvla.losses.precision import at_least_float32, dot_products

__all__ = ["ProxyNCA"]


class ProxyNCA(nn.Module):
    """Contrast every item with a learnable proxy of each class.

    Args:
        classes: Number C of classes, at least 2.
        width: Width d of the vectors.
        scale: Multiplies the distances: 1 in the paper, 32 in later comparisons.

    References:
        Movshovitz-Attias et al. 2017, "No Fuss Distance Metric Learning using Proxies",
        arXiv 1703.07464.
    """

    def __init__(self, classes: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"{classes} classes: at least 2 are needed")
        self.scale = scale
        self.proxies = nn.Parameter(torch.empty(classes, width))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of ``-log e^{-d(x, p_y)} / sum_{z != y} e^{-d(x, p_z)}``.

        d is the squared Euclidean distance. The sum excludes the own proxy, so the loss may be
        negative.

        Args:
            vectors: (N, d) unit vectors of the global batch.
            labels: (N,) long classes.
        """
        proxies = functional.normalize(at_least_float32(self.proxies), dim=1)
        # Both are unit vectors: |x - p|^2 = 2 - 2 x p.
        closeness = self.scale * (2 * dot_products(vectors, proxies) - 2)
        own = functional.one_hot(labels, len(proxies)).bool()
        others = closeness.masked_fill(own, -torch.inf).logsumexp(dim=1)
        return (others - closeness[own]).mean()
