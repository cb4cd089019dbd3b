"""Images as input of the vision model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lexvla.config import IMAGE_MEAN, IMAGE_STD
from lexvla.images import resize

__all__ = ["normalise_pixels", "preprocess", "to_pixels"]


def normalise_pixels(
    pixels: Tensor, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD
) -> Tensor:
    """Normalise (B, 3, H, W) pixels in 0 to 1 with the channels' means and deviations."""
    means = torch.tensor(mean, device=pixels.device).view(1, 3, 1, 1)
    deviations = torch.tensor(std, device=pixels.device).view(1, 3, 1, 1)
    return (pixels - means) / deviations


def preprocess(
    images: Iterable[Image.Image],
    side: int,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> Tensor:
    """Resize RGB images to squares and return (B, 3, side, side) normalised float32."""
    return to_pixels([resize(image, side) for image in images], mean, std)


def to_pixels(
    resized: Sequence[np.ndarray],
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> Tensor:
    """Stack (side, side, 3) uint8 images and return (B, 3, side, side) normalised float32."""
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    return normalise_pixels(pixels, mean, std)
