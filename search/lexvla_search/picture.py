"""An explanation as a picture: words as bars, and the image with the patches they came from."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw"]

_WIDTH, _ROW, _MARGIN, _FONT = 420, 26, 14, 15
_LABEL = 150  # pixels for the words
_GROUND, _INK, _BAR, _LEG = (24, 20, 20), (250, 236, 214), (214, 90, 30), (96, 140, 190)


def draw(
    words: Sequence[tuple[str, float]],
    legs: Sequence[tuple[str, float]],
    total: float,
    image: Image.Image | None = None,
) -> Image.Image:
    """Draw what each word and leg adds to a total as bars, beside the image, if given."""
    bars = _bars(words, legs, total)
    if image is None:
        return bars
    canvas = Image.new("RGB", (bars.width + image.width, max(bars.height, image.height)), _GROUND)
    canvas.paste(image, (0, 0))
    canvas.paste(bars, (image.width, 0))
    return canvas


def _bars(
    words: Sequence[tuple[str, float]], legs: Sequence[tuple[str, float]], total: float
) -> Image.Image:
    rows = [(*word, _BAR) for word in words] + [(*leg, _LEG) for leg in legs]
    height = 2 * _MARGIN + _ROW * (len(rows) + 1)
    canvas = Image.new("RGB", (_WIDTH, height), _GROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    longest = max((abs(part) for _, part, _ in rows), default=0.0) or 1.0
    room = _WIDTH - _LABEL - 2 * _MARGIN - 60
    for number, (name, part, colour) in enumerate(rows):
        top = _MARGIN + number * _ROW
        pen.text((_MARGIN, top), _fit(name, font), font=font, fill=_INK)
        left, length = _MARGIN + _LABEL, abs(part) / longest * room
        pen.rectangle((left, top + 4, left + length, top + _ROW - 8), fill=colour)
        pen.text((left + length + 6, top), f"{part:.3f}", font=font, fill=_INK)
    said = f"score {total:.3f}"
    pen.text((_MARGIN, _MARGIN + len(rows) * _ROW), said, font=font, fill=_INK)
    return canvas


def _fit(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(name) > 1 and font.getlength(name) > _LABEL - 8:
        name = name[:-2] + "\u2026"
    return name
