"""Hierarchical proxies: a tree above any proxy loss (HPL)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from lexvla.codebook import spherical_kmeans
from lexvla.losses.precision import dot_products
from lexvla.losses.proxy_anchor import ProxyAnchor
from lexvla.losses.proxy_nca import ProxyNCA

__all__ = ["HierarchicalProxy", "coarse_count"]


def coarse_count(classes: int) -> int:
    """Return the number of coarse classes: the square root, between 8 and 512."""
    return min(max(round(math.sqrt(classes)), 8), 512)


class HierarchicalProxy(nn.Module):
    """Proxies of classes and of coarse classes, which learn what their fine classes share.

    The coarse classes are a given tree, or clusters of the fine proxies: then a coarse level adds
    nothing before the first `recluster`.

    Args:
        classes: Number C of fine classes.
        width: Width d of the vectors.
        base: Loss of every level: `ProxyAnchor` or `ProxyNCA`, or a `functools.partial` of one.
        weights: Weights of the levels, fine to coarse.
        parents: A list for each coarse level, as from `class_levels`; by default levels are
            clustered.
        least_classes: A level of fewer classes gets no coarse level above it.

    Attributes:
        levels: The loss of each level; ``levels[0].proxies`` are the fine ones.

    References:
        Yang et al. 2022, "Hierarchical Proxy-based Loss for Deep Metric Learning", WACV,
        arXiv 2103.13538.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        base: Callable[[int, int], ProxyAnchor | ProxyNCA] = ProxyAnchor,
        weights: Sequence[float] = (1.0, 0.1),
        parents: Sequence[Sequence[int]] | None = None,
        least_classes: int = 32,
    ) -> None:
        super().__init__()
        if not weights:
            raise ValueError("no weights: each level needs one")
        if parents is not None and len(parents) != len(weights) - 1:
            raise ValueError(f"{len(parents)} levels of parents and {len(weights)} weights")
        self.weights = tuple(weights)
        self.given = parents is not None
        self.levels = nn.ModuleList([base(classes, width)])
        for level in range(len(weights) - 1):
            if parents is not None:
                _check_parents(parents[level], classes, level)
            if classes < least_classes:
                break
            if parents is None:
                above = torch.full((classes,), -1)  # not clustered yet
                classes = min(coarse_count(classes), classes)
            else:
                above = torch.tensor(parents[level])
                classes = int(above.max()) + 1
            self.register_buffer(f"parents_{level}", above)
            self.levels.append(base(classes, width))

    def parents(self, level: int) -> Tensor:
        """Return (C_level,) long: each class's parent on the level above; -1 before clustering."""
        return self.get_buffer(f"parents_{level}")

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of the levels' losses.

        A coarse level adds nothing before it is clustered, or if the batch has only one of its
        classes.

        Args:
            vectors: (N, d) unit vectors of the global batch.
            labels: (N,) long fine classes.
        """
        total = self.weights[0] * self.levels[0](vectors, labels)
        for level in range(1, len(self.levels)):
            labels = self.parents(level - 1)[labels]
            low, high = labels.min(), labels.max()
            if low < 0 or low == high:  # then so are all levels above
                break
            total = total + self.weights[level] * self.levels[level](vectors, labels)
        return total

    @torch.no_grad()
    def recluster(
        self, generator: torch.Generator | None = None, still: float = 0.999
    ) -> list[Tensor]:
        """Cluster each level's proxies; the centres become the proxies of the level above.

        New clusters are matched with the old ones (Hungarian method), so that coarse classes keep
        their numbers. With several processes, cluster in one and broadcast its state.

        Args:
            generator: Random generator on the proxies' device.
            still: A proxy has moved if its cosine with the old one is below this.

        Returns:
            For each coarse level the proxies that moved; clear their optimiser state.
        """
        if self.given:
            raise ValueError("a given tree is not clustered")
        moved = []
        for level, above in enumerate(list(self.levels)[1:]):
            below = _proxies(self.levels[level])
            old = _proxies(above)
            centres, nearest = spherical_kmeans(below, len(old), generator=generator)
            old_unit = functional.normalize(old.float(), dim=1)
            gain = dot_products(centres, old_unit)
            _, to = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
            number = torch.as_tensor(to, device=nearest.device)  # new cluster -> old number
            same = gain.gather(1, number[:, None])[:, 0] >= still
            old[number] = centres.to(old.dtype)
            self.parents(level).copy_(number[nearest])
            moved.append(number[~same].sort().values)
        return moved


def _proxies(loss: nn.Module) -> Tensor:
    return loss.get_parameter("proxies").detach()


def _check_parents(parents: Sequence[int], classes: int, level: int) -> None:
    if len(parents) != classes:
        raise ValueError(f"level {level}: {len(parents)} parents of {classes} classes")
    if set(parents) != set(range(max(parents) + 1)):
        raise ValueError(f"level {level}: parents are not numbered 0, 1, ... without a gap")
    if len(set(parents)) == 1:
        raise ValueError(f"level {level}: all classes have the same parent")
