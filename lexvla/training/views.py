"""Random views of photographs."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

__all__ = ["random_view"]


def random_view(
    image: Image.Image, side: int, crop: float, jitter: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a random part of an RGB image, as (side, side, 3) uint8.

    It is not flipped: captions tell left from right.

    Args:
        image: Any size.
        side: Pixels of the view.
        crop: Smallest share of the area; 1 for the whole image. The sides' ratio changes by up to
            4/3, and less where the part would be wider or higher than the image.
        jitter: Brightness, contrast and colour change by up to this share.
        rng: Decides all that is random.
    """
    width, height = image.size
    share = rng.uniform(crop, 1)
    ratio = min(4 / 3, 1 / share) ** rng.uniform(-1, 1)
    part_width = width * min(1.0, math.sqrt(share * ratio))
    part_height = height * min(1.0, math.sqrt(share / ratio))
    left, top = rng.uniform(0, width - part_width), rng.uniform(0, height - part_height)
    box = (left, top, left + part_width, top + part_height)
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = 1 + rng.uniform(-jitter, jitter)
        if jitter:
            view = change(view).enhance(factor)
    return np.asarray(view)
