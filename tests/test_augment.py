from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexvla.preprocessing import normalise_pixels
from lexvla.training.augment import augment

WHITE = normalise_pixels(torch.ones(1, 3, 1, 1))
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def drawing(top: int, left: int, height: int, width: int, colour: tuple[int, ...]) -> Tensor:
    pixels = torch.zeros(1, 64, 64, 4, dtype=torch.uint8)
    pixels[0, :, :, 0] = 255  # red where nothing is to be seen of it
    pixels[0, top : top + height, left : left + width] = torch.tensor(colour, dtype=torch.uint8)
    return pixels


def view(pixels: Tensor, side: int, strength: float, seed: int = 0) -> Tensor:
    return augment(pixels, side, strength, torch.Generator().manual_seed(seed))


def colours(normalised: Tensor) -> Tensor:
    return normalised * STD + MEAN


@pytest.mark.parametrize(
    ("top", "left", "height", "width"), [(0, 0, 64, 64), (8, 40, 12, 20), (30, 2, 32, 8)]
)
def test_strength_zero_is_the_drawing_on_white_by_its_box(
    top: int, left: int, height: int, width: int
) -> None:
    pixels = drawing(top, left, height, width, (50, 100, 200, 255))
    image = colours(view(pixels, 100, 0.0))[0]
    # The longer side takes 94 of 100 pixels, the box lies in the middle, and nothing else is seen.
    longer = max(height, width)
    half = torch.tensor([height, width]) / longer * 47
    place = (torch.arange(100) + 0.5 - 50).abs()
    edge = 75 / longer + 0.75  # how far bilinear sampling reaches
    inside = (place[:, None] < half[0] - edge) & (place[None, :] < half[1] - edge)
    outside = (place[:, None] > half[0] + edge) | (place[None, :] > half[1] + edge)
    assert inside.sum() > 100
    assert outside.sum() > 0
    colour = torch.tensor([50, 100, 200]) / 255
    torch.testing.assert_close(image[:, inside].mean(1), colour, atol=2e-3, rtol=0)
    torch.testing.assert_close(image[:, inside].amax(1), colour, atol=2e-3, rtol=0)
    torch.testing.assert_close(image[:, outside], torch.ones(3, int(outside.sum())))


def test_what_is_transparent_does_not_show() -> None:
    # The red that lies hidden under the clear part must not colour the edge of the blue box.
    image = colours(view(drawing(20, 20, 24, 24, (0, 0, 255, 255)), 48, 0.0))[0]
    red, blue = image[0], image[2]
    assert (red <= blue + 1e-5).all()


def test_half_clear_is_half_white() -> None:
    image = colours(view(drawing(0, 0, 64, 64, (0, 0, 0, 128)), 32, 0.0))[0]
    assert image[:, 16, 16].tolist() == pytest.approx([1 - 128 / 255] * 3, abs=2e-3)


def test_an_empty_drawing_is_white() -> None:
    empty = torch.zeros(2, 64, 64, 4, dtype=torch.uint8)
    torch.testing.assert_close(view(empty, 24, 0.0), WHITE.expand(2, 3, 24, 24))


def test_strength_zero_has_nothing_random() -> None:
    pixels = drawing(10, 10, 30, 40, (10, 200, 30, 255)).repeat(3, 1, 1, 1)
    one, other = view(pixels, 24, 0.0, seed=1), view(pixels, 24, 0.0, seed=2)
    assert torch.equal(one, other)
    assert torch.equal(one[0], one[2])


def test_the_generator_decides_all() -> None:
    pixels = drawing(10, 10, 30, 40, (10, 200, 30, 255)).repeat(4, 1, 1, 1)
    state = torch.get_rng_state()
    assert torch.equal(view(pixels, 24, 1.0, seed=1), view(pixels, 24, 1.0, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    views = torch.cat([view(pixels, 24, 1.0, seed=1), view(pixels, 24, 1.0, seed=2)])
    assert len(torch.unique(views, dim=0)) == 8


def test_the_drawings_are_left_as_they_are() -> None:
    pixels = drawing(10, 10, 30, 40, (10, 200, 30, 255))
    before = pixels.clone()
    view(pixels, 24, 1.0)
    assert torch.equal(pixels, before)


@given(st.integers(1, 5), st.sampled_from([8, 16, 33]), st.floats(0, 3), st.integers(0, 1000))
def test_views_are_finite_and_in_range(count: int, side: int, strength: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 64, 64, 4), dtype=torch.uint8, generator=generator)
    image = view(pixels, side, strength, seed)
    assert image.shape == (count, 3, side, side)
    assert image.dtype == torch.float32
    assert image.isfinite().all()
    assert colours(image).min() >= -1e-5
    assert colours(image).max() <= 1 + 1e-5


def test_views_spread_about_the_drawing() -> None:
    """At the usual strength most of a drawing stays in view, on white nine times in ten."""
    pixels = drawing(8, 16, 48, 32, (30, 60, 90, 255)).repeat(200, 1, 1, 1)
    images = colours(view(pixels, 32, 1.0))
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(1)
    plain = (corners > 0.93).sum(1) >= 3
    assert 0.7 < plain.float().mean() < 0.99
    middle = images[:, :, 12:20, 12:20].mean((1, 2, 3))
    assert (middle < 0.8).float().mean() > 0.9
    assert middle.std() > 0.02
