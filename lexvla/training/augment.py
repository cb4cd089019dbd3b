"""Random views of drawings and of photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional

from lexvla.config import IMAGE_MEAN, IMAGE_STD
from lexvla.preprocessing import normalise_pixels

__all__ = ["augment", "random_view"]


def augment(
    pixels: Tensor,
    side: int,
    strength: float,
    generator: torch.Generator,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> Tensor:
    """Return a random view of each drawing: place, shape, colour, line weight and background.

    Args:
        pixels: (B, H, W, 4) uint8, straight alpha.
        side: Height and width of the views, in pixels.
        strength: 1 is the usual spread of every change; 0 gives the drawing on white.
        generator: Random generator.
        mean: The model's channel means.
        std: The model's channel deviations.

    Returns:
        (B, 3, side, side) float32, normalised.
    """
    colour = pixels[..., :3].permute(0, 3, 1, 2).float() / 255
    alpha = pixels[..., 3:].permute(0, 3, 1, 2).float() / 255
    # Warp with premultiplied alpha, or fringes of hidden colour would show.
    layers = torch.cat([colour * alpha, alpha], dim=1)
    grid = functional.affine_grid(
        _placement(alpha, strength, generator), [len(pixels), 4, side, side], align_corners=False
    )
    layers = functional.grid_sample(layers, grid, align_corners=False)
    colour, alpha = layers[:, :3], layers[:, 3:].clamp(0, 1)
    colour = _recolour(colour, alpha, strength, generator)
    image = colour + (1 - alpha) * _background(len(pixels), strength, generator)
    image = _some(image, 0.15 * strength, _thicken, generator)
    image = _some(image, 0.15 * strength, _blur, generator)
    image = _some(image, 0.10 * strength, _posterise, generator)
    image = _erase(image, 0.35 * strength, generator)
    noise = torch.randn(image.shape, generator=generator)
    image = image + noise * 0.02 * strength * _uniform(len(image), 0, 1, generator)
    return normalise_pixels(image.clamp(0, 1), mean, std)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def _placement(alpha: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return (B, 2, 3) affine maps from the view to the drawing's opaque box."""
    count, _, height, width = alpha.shape
    centres, halves = [], []
    for axis, length in ((2, width), (3, height)):  # the collapsed axis
        covered = alpha.amax(dim=(1, axis)) > 0.1
        covered[~covered.any(1)] = True
        first = covered.int().argmax(1)
        last = length - 1 - covered.flip(1).int().argmax(1)
        centres.append((first + last + 1) / length - 1)
        halves.append((last - first + 1) / length)

    def spread(size: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * size * strength

    angle = spread(math.radians(14))
    shear = spread(0.12)
    # The drawing's longer side takes 72 to 104 % of the view, mostly nearly all.
    share = 0.94 + spread(0.10) - spread(0.12).abs()
    scale = torch.maximum(halves[0], halves[1]) / share
    aspect = torch.exp(spread(0.13))
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale * aspect * angle.cos()
    theta[:, 0, 1] = scale * (shear - angle.sin())
    theta[:, 1, 0] = scale * angle.sin()
    theta[:, 1, 1] = scale / aspect * angle.cos()
    theta[:, 0, 2] = centres[0] + spread(0.08)
    theta[:, 1, 2] = centres[1] + spread(0.08)
    return theta


def _recolour(colour: Tensor, alpha: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation, gamma and, a little, hue."""
    count = len(colour)
    straight = colour / alpha.clamp(min=1e-3)
    gray = straight.mean(dim=1, keepdim=True)
    saturation = 1 + _uniform(count, -0.45, 0.45, generator) * strength
    gain = 1 + _uniform(count, -0.3, 0.3, generator) * strength
    shift = _uniform(count, -0.12, 0.12, generator) * strength
    tint = (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 0.24 * strength
    straight = gray + (straight - gray) * saturation
    straight = (straight - 0.5) * gain + 0.5 + shift + tint
    gamma = torch.exp(_uniform(count, -0.35, 0.35, generator) * strength)
    # A soft light from one side: drawing sets differ most in flat fills or gradients.
    side = colour.shape[-1]
    ramp = torch.linspace(-1, 1, side)
    turn = _uniform(count, 0, 2 * math.pi, generator)
    light = ramp[None, None, :, None] * turn.sin() + ramp[None, None, None, :] * turn.cos()
    straight = straight + light * _uniform(count, 0, 0.15, generator) * strength
    return straight.clamp(0.001, 1).pow(gamma) * alpha


def _background(count: int, strength: float, generator: torch.Generator) -> Tensor:
    """Return (B, 3, 1, 1) colours: white most of the time."""
    plain = torch.rand(count, 3, 1, 1, generator=generator)
    return torch.where(_uniform(count, 0, 1, generator) < 0.12 * strength, plain, 1.0)


def _some(
    image: Tensor,
    share: float,
    change: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Apply a change to a random share of the batch."""
    chosen = torch.rand(len(image), generator=generator) < share
    if not chosen.any():
        return image
    image = image.clone()
    image[chosen] = change(image[chosen])
    return image


def _thicken(image: Tensor) -> Tensor:
    return -functional.max_pool2d(-image, 3, stride=1, padding=1)


def _blur(image: Tensor) -> Tensor:
    return functional.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)


def _posterise(image: Tensor) -> Tensor:
    return (image * 4).round() / 4


def _erase(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Paint a rectangle, up to a third of the side, over a share of the batch."""
    count, _, side, _ = image.shape
    line = torch.arange(side).float()
    inside = []
    for _ in range(2):
        length = torch.rand(count, 1, generator=generator) * side / 3 + 3
        start = torch.rand(count, 1, generator=generator) * (side - length)
        inside.append((line >= start) & (line < start + length))
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    box &= torch.rand(count, 1, 1, 1, generator=generator) < share
    return torch.where(box, torch.rand(count, 3, 1, 1, generator=generator), image)


def random_view(
    image: Image.Image, side: int, crop: float, jitter: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a random crop of an RGB photograph, as (side, side, 3) uint8.

    There are no flips: captions distinguish left and right.

    Args:
        image: An image of any size.
        side: Height and width of the view, in pixels.
        crop: Smallest share of the area; 1 for the whole image. The aspect ratio changes by up to
            4/3, within the image.
        jitter: Largest change of brightness, contrast and colour, as a share.
        rng: Random generator.
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
