"""Regions of an image as sets of patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lexvla.errors import InputError

__all__ = ["Region", "region_patches"]

Region = Sequence[float] | np.ndarray


def region_patches(region: Region, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Return the numbers of the patches that a region covers, at least in part.

    Args:
        region: A box ``(x, y, width, height)`` in pixels of the upright image, from its upper
            left corner; or a bool mask of shape ``grid``.
        size: Width and height of the image.
        grid: Rows and columns of patches.

    Returns:
        (n,) sorted int64; patches count row by row.

    Raises:
        InputError: The region is empty, leaves the image, or has the wrong shape.

    Example:
        >>> region_patches((50, 0, 50, 40), (100, 100), (2, 2))
        array([1])
    """
    mask = np.asarray(region)
    if mask.dtype == bool:
        if mask.shape != grid:
            rule = f"a mask of patches must have the shape {grid}, not {mask.shape}"
            raise InputError("region", rule)
        if not mask.any():
            raise InputError("region", "the mask holds no patch")
        return np.flatnonzero(mask)
    name = f"region {tuple(region)}"
    if mask.shape != (4,) or not np.issubdtype(mask.dtype, np.number):
        raise InputError(name, "must be (x, y, width, height) or a bool mask of patches")
    x, y, width, height = (float(value) for value in mask)
    if not (np.isfinite(mask).all() and width > 0 and height > 0):
        raise InputError(name, "has no area")
    if x < 0 or y < 0 or x + width > size[0] or y + height > size[1]:
        raise InputError(name, f"must lie within the image of {size[0]} x {size[1]} pixels")
    rows = _covered(y, height, size[1], grid[0])
    columns = _covered(x, width, size[0], grid[1])
    return (rows[:, None] * grid[1] + columns).ravel()


def _covered(start: float, length: float, pixels: int, patches: int) -> np.ndarray:
    """Return the patches that a span of pixels touches on one axis."""
    scale = patches / pixels
    first = int(np.floor(start * scale))
    last = int(np.ceil((start + length) * scale))
    return np.arange(min(first, patches - 1), min(max(last, first + 1), patches))
