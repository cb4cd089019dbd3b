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
    """Return the number of coarse classes: the root, for an even fan-out, within 8 and 512."""
    return min(max(round(math.sqrt(classes)), 8), 512)


class HierarchicalProxy(nn.Module):
    """Add proxies of coarse classes, which learn what their fine classes share.

    The coarse classes are given as a tree, or are clusters of the fine proxies: then a coarse
    level is silent until the first `recluster`.

    Args:
        classes: Number C of fine classes.
        width: Width d of the vectors.
        base: The loss of every level: `ProxyAnchor`, `ProxyNCA`, or either with settings bound by
            `functools.partial`.
        weights: Of the levels, the fine one first.
        parents: One list for each coarse level: at [l][c] the number of the parent of class c of
            level l, such as `class_levels` gives. None: build the levels by clustering.
        least_classes: A level of fewer classes gets no coarse level above it.

    Attributes:
        levels: The loss of each level; ``levels[0].proxies`` are the fine ones.

    Raises:
        ValueError: Weights and parents do not fit one another, or the parents are not numbered
            0, 1, ... without a gap, or a coarse level has one class.

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

        A coarse level adds nothing before it is clustered, or where the batch has one of its
        classes only: there is nothing to tell apart.

        Args:
            vectors: (N, d) unit vectors. N is the global batch: gather the rows of all processes
                first.
            labels: (N,) long fine classes.
        """
        total = self.weights[0] * self.levels[0](vectors, labels)
        for level in range(1, len(self.levels)):
            labels = self.parents(level - 1)[labels]
            low, high = labels.min(), labels.max()
            if low < 0 or low == high:  # all levels above are one class, or not clustered, too
                break
            total = total + self.weights[level] * self.levels[level](vectors, labels)
        return total

    @torch.no_grad()
    def recluster(
        self, generator: torch.Generator | None = None, still: float = 0.999
    ) -> list[Tensor]:
        """Cluster each level's proxies anew; the centres become the proxies of the level above.

        New clusters are matched with the old ones for the largest sum of cosines (Hungarian
        method), so that a coarse class keeps its number. Where several processes train, cluster in
        one of them and send the others its state.

        Args:
            generator: Source of random numbers, on the proxies' device.
            still: A coarse proxy moved where its cosine with the old one is below this.

        Returns:
            For each coarse level the proxies that moved, long: clear their optimiser state.

        Raises:
            ValueError: The tree was given, so there is nothing to cluster.
        """
        if self.given:
            raise ValueError("the tree was given: it is not clustered")
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
