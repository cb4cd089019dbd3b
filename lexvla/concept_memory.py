"""Concepts that a frozen convolutional network can tell apart, as a memory that patches read."""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LAYOUT", "ConceptMemory", "ConceptSizes", "layout", "roots"]

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
    """Let each patch read the concepts that the image as a whole and the patch itself show.

    An image is compared with every item by the cosine of its pooled channels, whitened by how
    drawings of one item differ, and by the cosine of its layout, 3 x 3 means of the finer stage,
    whitened alike. Classes are the network's own linear classifier, applied to the pooled
    channels, and to each cell. Both kinds share one softmax a patch: the more an image looks like
    an item, the less its classes say. What a patch reads is the mean of the concepts' values, so
    the maximum over patches remains the paper's (LexVLA eq. 4).

    Whitening, keys and classifier are set in closed form and stay; see
    `lexvla.training.concept_start`.

    Args:
        sizes: How many concepts there are, and how wide each part is.
        width: Width of the values.

    References:
        Sukhbaatar et al. 2015, "End-To-End Memory Networks", arXiv 1503.08895; Zhou et al. 2016,
        "Learning Deep Features for Discriminative Localization" (class activation),
        arXiv 1512.04150.
    """

    def __init__(self, sizes: ConceptSizes, width: int) -> None:
        super().__init__()
        self.sizes = sizes
        items, classes, channels, fine, wide, local = sizes
        self.whiten = nn.Linear(channels, channels)
        self.item_keys = nn.Parameter(torch.zeros(items, channels))
        self.layout = nn.Linear(LAYOUT**2 * fine, wide)
        self.layout_keys = nn.Parameter(torch.zeros(items, wide))
        self.classifier = nn.Linear(channels, classes)
        self.local = nn.Linear(channels, local)
        self.local_keys = nn.Parameter(torch.zeros(items, local))
        self.values = nn.Parameter(torch.zeros(items + classes, width))
        # Of an image's items and classes, and of a patch's; then what is added to the classes.
        self.scales = nn.Parameter(torch.ones(4))
        self.class_bias = nn.Parameter(torch.zeros(1))
        for part in self.closed_form:
            part.requires_grad_(False)

    @property
    def closed_form(self) -> list[nn.Parameter]:
        """Return the weights that no gradient changes."""
        linear = (self.whiten, self.layout, self.classifier)
        weights = [weight for layer in linear for weight in layer.parameters()]
        return [*weights, self.item_keys, self.layout_keys]

    def whole(self, cells: Tensor) -> Tensor:
        """Compare whole images with every concept.

        Args:
            cells: (B, T, C) of a square map.

        Returns:
            (B, items + classes): sums of two cosines, then logits of classes.
        """
        own = cells[..., : self.sizes.channels]
        looks = functional.normalize(self.whiten(roots(own).mean(1)), dim=-1)
        shape = layout(cells[..., self.sizes.channels :])
        shape = functional.normalize(self.layout(shape), dim=-1)
        items = looks @ self.item_keys.T + shape @ self.layout_keys.T
        return torch.cat([items, self.classifier(own.mean(1))], dim=-1)

    def forward(self, cells: Tensor, whole: Tensor) -> Tensor:
        """Return (B, T, width), what each patch reads.

        Args:
            cells: (B, T, C), all cells or some.
            whole: What `whole` gave for the images.
        """
        items, own = self.sizes.items, cells[..., : self.sizes.channels]
        image_items, image_classes, patch_items, patch_classes = self.scales
        of_items = self.local(roots(own)) @ self.local_keys.T
        of_classes = self.classifier(own)
        scores = torch.cat(
            [
                image_items * whole[:, None, :items] + patch_items * of_items,
                image_classes * whole[:, None, items:]
                + patch_classes * of_classes
                + self.class_bias,
            ],
            dim=-1,
        )
        return scores.float().softmax(dim=-1).to(scores.dtype) @ self.values


def roots(cells: Tensor) -> Tensor:
    """Return the square roots of channels, those below 0 as 0: large ones then say less."""
    return cells.clamp(min=0).sqrt()


def layout(fine: Tensor) -> Tensor:
    """Return the (B, 9 * C) means of a square map's thirds.

    Args:
        fine: (B, T, 4 * C), in each cell four of a finer stage, as `pixel_unshuffle` orders them.
    """
    batch, count, width = fine.shape
    side = isqrt(count)
    mean = fine.reshape(batch, count, width // 4, 4).mean(-1)
    grid = mean.transpose(1, 2).reshape(batch, width // 4, side, side)
    return functional.adaptive_avg_pool2d(grid, LAYOUT).flatten(1)
