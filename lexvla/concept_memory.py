"""Concepts that a frozen convolutional network distinguishes, and their place in an image."""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LAYOUT", "ConceptMemory", "ConceptSizes", "layout", "roots", "with_level"]

LEAST_SHARE = 1e-3  # smallest share of a concept in an image
LAYOUT = 3  # rows and columns of a layout


class ConceptSizes(NamedTuple):
    """Sizes of a `ConceptMemory`.

    Attributes:
        items: Concepts known by examples.
        classes: Classes of the network's classifier.
        channels: Channels of the last map, which come first in a cell.
        fine: Channels of the finer stage; four of its cells follow the channels of a cell.
        layout: Width of the layout keys.
        local: Rank of the items' evidence in a patch.
    """

    items: int
    classes: int
    channels: int
    fine: int
    layout: int
    local: int


class ConceptMemory(nn.Module):
    """Compute the shares of concepts in an image, and their shares in every patch.

    An image is compared with every item by two cosines: of its pooled channels, whitened by the
    differences between drawings of an item, and of its layout (3 x 3 means and the deviation of the
    finer stage), whitened likewise. Classes are the network's linear classifier on pooled channels.
    Items share one softmax and classes another. The surer the best item is, the more all items
    count and the less the classes: the items' part is its probability to the power of the gate. A
    patch's share of a concept is that of the image times the patch's evidence relative to the best
    patch. So the best patch has the image's share, and the maximum over patches is the paper's
    (LexVLA eq. 4).

    A state has a number for each concept, and a 1 for the level of absent words. A row of the image
    codebook has the weights of concepts for a word.

    All weights are set in closed form and frozen; see `lexvla.training.concept_start`.

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
        # Scales of an image's items and classes, and a patch's; exponent of the gate.
        self.scales = nn.Parameter(torch.ones(5))
        self.requires_grad_(False)

    def whole(self, cells: Tensor) -> Tensor:
        """Compare images, (B, T, C) cells of a square map, with every concept.

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
        """Return (B, items + classes) shares of concepts from `whole`, 0 below `LEAST_SHARE`."""
        known = self.sizes.items
        items = (self.scales[0] * whole[:, :known]).float().softmax(dim=-1)
        classes = (self.scales[1] * whole[:, known:]).float().softmax(dim=-1)
        sure = items.amax(dim=-1, keepdim=True) ** self.scales[4].float()
        shares = torch.cat([sure * items, (1 - sure) * classes], dim=-1)
        return shares * (shares >= LEAST_SHARE)

    def forward(self, cells: Tensor, whole: Tensor) -> Tensor:
        """Return the (B, T, items + classes + 1) states of patches; the last number is 1.

        Args:
            cells: (B, T, C), all cells or a sample.
            whole: Result of `whole` for the images.
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
    """Append a 1 to (..., concepts) shares, for the codebook's level of absent words."""
    return functional.pad(shown, (0, 1), value=1.0)


def roots(cells: Tensor) -> Tensor:
    """Return the square roots of channels, clamped at 0, to reduce the weight of large ones."""
    return cells.clamp(min=0).sqrt()


def layout(fine: Tensor) -> Tensor:
    """Return (B, 10 * C): means over 3 x 3 parts of a square map, then channels' deviations.

    ``fine`` is (B, T, 4 * C), four cells of a finer stage in each cell, as of `pixel_unshuffle`.
    """
    batch, count, width = fine.shape
    side = isqrt(count)
    mean = fine.reshape(batch, count, width // 4, 4).mean(-1)
    grid = mean.transpose(1, 2).reshape(batch, width // 4, side, side)
    thirds = functional.adaptive_avg_pool2d(grid, LAYOUT).flatten(1)
    return torch.cat([thirds, mean.std(1, correction=0)], dim=1)
