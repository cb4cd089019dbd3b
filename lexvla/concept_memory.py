"""Concepts that a frozen convolutional network can tell apart, and where an image shows them."""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LAYOUT", "ConceptMemory", "ConceptSizes", "layout", "roots", "with_level"]

LEAST_SHARE = 1e-3  # of what an image shows
LAYOUT = 3  # rows and columns that a map's layout is described by


class ConceptSizes(NamedTuple):
    """Sizes of a `ConceptMemory`.

    Attributes:
        items: Concepts that are known by examples.
        classes: Classes of the network's own classifier.
        channels: Channels of the last map, which come first in a cell.
        fine: Channels of the finer stage; a cell has four of its cells behind its own channels.
        layout: Width of the layout's keys.
        local: Rank of the items' evidence in one patch.
    """

    items: int
    classes: int
    channels: int
    fine: int
    layout: int
    local: int


class ConceptMemory(nn.Module):
    """Say which concepts an image shows, and how much of each one every patch shows.

    An image is compared with every item by the cosine of its pooled channels, whitened by how
    drawings of one item differ, and by the cosine of its layout, 3 x 3 means and the deviation of
    the finer stage, whitened alike. Classes are the network's own linear classifier on the pooled
    channels. Both kinds share one softmax: the more an image looks like an item, the less its
    classes say. A patch has its part of each share by its own evidence, divided by that of the
    patch that shows the concept best. So the best patch says of a concept what the whole image
    says, and the maximum over patches is the paper's (LexVLA eq. 4).

    A state has one number a concept, and a 1 for the level of words that nothing shows. A row of
    the image codebook says in return which concepts bear the word.

    All weights are set in closed form and stay; see `lexvla.training.concept_start`.

    Args:
        sizes: How many concepts there are, and how wide each part is.

    References:
        Sukhbaatar et al. 2015, "End-To-End Memory Networks", arXiv 1503.08895; Zhou et al. 2016,
        "Learning Deep Features for Discriminative Localization" (class activation),
        arXiv 1512.04150.
    """

    def __init__(self, sizes: ConceptSizes) -> None:
        super().__init__()
        self.sizes = sizes
        items, classes, channels, fine, wide, local = sizes
        self.whiten = nn.Linear(channels, channels)
        self.item_keys = nn.Parameter(torch.zeros(items, channels))
        self.layout = nn.Linear((LAYOUT**2 + 1) * fine, wide)
        self.layout_keys = nn.Parameter(torch.zeros(items, wide))
        self.classifier = nn.Linear(channels, classes)
        self.local = nn.Linear(channels, local)
        self.local_keys = nn.Parameter(torch.zeros(items, local))
        self.scales = nn.Parameter(torch.ones(4))  # of an image's items and classes, a patch's
        self.requires_grad_(False)

    def whole(self, cells: Tensor) -> Tensor:
        """Compare whole images with every concept.

        Args:
            cells: (B, T, C) of a square map.

        Returns:
            (B, items + classes): weighted sums of two cosines, then logits of classes.
        """
        own = cells[..., : self.sizes.channels]
        looks = functional.normalize(self.whiten(roots(own).mean(1)), dim=-1)
        shape = layout(cells[..., self.sizes.channels :])
        shape = functional.normalize(self.layout(shape), dim=-1)
        items = looks @ self.item_keys.T + shape @ self.layout_keys.T
        return torch.cat([items, self.classifier(own.mean(1))], dim=-1)

    def shares(self, whole: Tensor) -> Tensor:
        """Return (B, items + classes), how what each image shows is shared out over the concepts.

        Shares below `LEAST_SHARE` are 0.

        Args:
            whole: What `whole` gave for the images.
        """
        items = self.sizes.items
        scaled = [self.scales[0] * whole[:, :items], self.scales[1] * whole[:, items:]]
        shares = torch.cat(scaled, dim=-1).float().softmax(dim=-1)
        return shares * (shares >= LEAST_SHARE)

    def forward(self, cells: Tensor, whole: Tensor) -> Tensor:
        """Return the (B, T, items + classes + 1) states of patches; the last number is 1.

        Args:
            cells: (B, T, C), all cells or some, which are then compared with one another.
            whole: What `whole` gave for the images.
        """
        own = cells[..., : self.sizes.channels]
        evidence = torch.cat(
            [
                self.scales[2] * (self.local(roots(own)) @ self.local_keys.T),
                self.scales[3] * self.classifier(own),
            ],
            dim=-1,
        ).float()
        shown = (evidence - evidence.amax(dim=1, keepdim=True)).exp()
        return with_level(self.shares(whole)[:, None] * shown).to(cells.dtype)


def with_level(shown: Tensor) -> Tensor:
    """Put a 1 behind the (..., concepts) shown: a codebook has the level of absent words there."""
    return functional.pad(shown, (0, 1), value=1.0)


def roots(cells: Tensor) -> Tensor:
    """Return the square roots of channels, those below 0 as 0: large ones then say less."""
    return cells.clamp(min=0).sqrt()


def layout(fine: Tensor) -> Tensor:
    """Return the (B, 10 * C) means of a square map's thirds, then each channel's deviation.

    Args:
        fine: (B, T, 4 * C), in each cell four of a finer stage, as `pixel_unshuffle` orders them.
    """
    batch, count, width = fine.shape
    side = isqrt(count)
    mean = fine.reshape(batch, count, width // 4, 4).mean(-1)
    grid = mean.transpose(1, 2).reshape(batch, width // 4, side, side)
    thirds = functional.adaptive_avg_pool2d(grid, LAYOUT).flatten(1)
    return torch.cat([thirds, mean.std(1, correction=0)], dim=1)
