"""Heat maps of where in an image the matched words were read from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla.images import ImageSource, open_image

__all__ = ["WordMapper", "fit", "heatmap", "match_map", "patch_map", "word_map"]

MIN_SIDE, MAX_SIDE = 384, 1024  # the longer side of the picture, in pixels
GLOW = 0.8  # opacity of the strongest patch
SHADE = 0.48  # brightness of what does not glow
SPREAD = 0.55  # sigma of the Gaussian of a patch, in patches
_MARGIN, _FONT_SIZE = 8, 15

# Dark red to orange to pale yellow: brightness shows strength too, for the colour-blind.
_STOPS = np.array([0.0, 0.4, 0.75, 1.0])
_COLOURS = np.array([[110, 0, 10], [214, 40, 15], [252, 146, 32], [255, 238, 140]], dtype=float)


def patch_map(patches: Iterable[tuple[int, float]], grid: tuple[int, int]) -> np.ndarray:
    """Return the weights of patches as (rows, columns); weights of one patch add up.

    Each pair is a patch number, counted row by row, and a weight.
    """
    rows, columns = grid
    weights = np.zeros(rows * columns)
    for patch, weight in patches:
        if not 0 <= patch < len(weights):
            raise ValueError(f"patch {patch} lies outside a grid of {rows} x {columns}")
        weights[patch] += weight
    return weights.reshape(rows, columns)


class WordMapper(Encoder, Protocol):
    """What an encoder may offer besides `Encoder`: where in an image it reads words.

    Without ``heatmaps``, a word is placed on the one patch that the index keeps of it, which needs
    the grid.
    """

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches; patch numbers count row by row."""
        ...

    def heatmaps(self, image: Image.Image, words: Sequence[int]) -> np.ndarray:
        """Return a map of at least 0 for each column of a vector: (n, rows, columns)."""
        ...


class Match(Protocol):
    """A word found in an image; see `lexvla_search.explanation.TermMatch`."""

    @property
    def term(self) -> str:
        """The piece as the vocabulary writes it."""
        ...

    @property
    def product(self) -> float:
        """What the word adds to the lexical leg's score."""
        ...

    @property
    def patch(self) -> int | None:
        """The patch that the word was read from, if known."""
        ...


class Matched(Protocol):
    """An object with matches, such as a `lexvla_search.Explanation`."""

    @property
    def matches(self) -> Sequence[Match]:
        """The words that query and document share."""
        ...


def match_map(model: Encoder, image: Image.Image, explanation: Matched) -> np.ndarray:
    """Return where all matched words were read from, weighted by their products; see `WordMapper`.

    `InputError` if nothing matched or the index keeps no patches of the matches,
    `UnsupportedError` if the model has neither maps nor a patch grid.
    """
    matches = explanation.matches
    columns = [model.vocabulary.id(match.term) for match in matches]
    maps = _maps(model, image, columns) if matches else None
    if maps is not None:
        products = [match.product for match in matches]
        return np.sum([_contrast(m) * p for m, p in zip(maps, products, strict=True)], axis=0)
    placed = [(match.patch, match.product) for match in matches if match.patch is not None]
    if not placed:
        raise InputError("heat map", "no matched word has a place in the image")
    return patch_map(placed, _grid(model))


def word_map(model: Encoder, image: Image.Image, word: str, document: Encoding) -> np.ndarray:
    """Return where one word was read from, whether or not a query has it.

    `InputError` if the vocabulary has no such word or the document no patch of it,
    `UnsupportedError` if the model has neither maps nor a patch grid.
    """
    column = model.vocabulary.find(word)
    if column is None:
        raise InputError(word, "the vocabulary has no such word")
    maps = _maps(model, image, [column])
    if maps is not None:
        return _contrast(maps[0])
    at = np.flatnonzero(document.lexical.indices == column)
    if document.patches is None or not len(at):
        raise InputError(word, "the word has no place in the image")
    return patch_map([(int(document.patches[at[0]]), 1.0)], _grid(model))


def heatmap(image: ImageSource, weights: np.ndarray, caption: str = "") -> Image.Image:
    """Draw an image whose patches glow by their weights.

    Weights are at least 0, as (rows, columns) over the whole image. A caption adds a strip under
    the picture, which is RGB, its size that of `fit` without the strip.
    """
    weights = np.asarray(weights, dtype=np.float32)
    if weights.ndim != 2 or weights.size == 0:
        raise ValueError(f"weights must have rows and columns, not the shape {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("weights must be finite and at least 0")
    picture = fit(open_image(image))
    strength = _upsample(weights, picture.size)[..., None]
    base = np.asarray(picture, dtype=float)
    grey = base.mean(axis=2, keepdims=True)
    shaded = (0.5 * base + 0.5 * grey) * SHADE
    cover = GLOW * strength**1.25  # soft edges; the picture stays visible
    lit = shaded + (base - shaded) * np.sqrt(strength)
    pixels = lit * (1 - cover) + _colour(strength[..., 0]) * cover
    glowing = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return _with_caption(glowing, caption) if caption else glowing


def _maps(model: Encoder, image: Image.Image, columns: list[int]) -> np.ndarray | None:
    if not hasattr(model, "heatmaps"):
        return None
    return cast(WordMapper, model).heatmaps(image, columns)


def _grid(model: Encoder) -> tuple[int, int]:
    grid: tuple[int, int] | None = getattr(model, "patch_grid", None)
    if grid is None:
        raise UnsupportedError(f"the model {model.name!r} does not say where its patches lie")
    return grid


def _contrast(weights: np.ndarray) -> np.ndarray:
    # A model's weights are above 0 everywhere; what counts is the excess over the mean.
    weights = np.asarray(weights, dtype=float)
    above = np.maximum(weights - weights.mean(), 0)
    return above / (above.max() or 1.0)


def fit(image: Image.Image) -> Image.Image:
    """Scale an image to the size of a heat map: the longer side has 384 to 1,024 pixels."""
    longer = max(image.size)
    scale = min(max(longer, MIN_SIDE), MAX_SIDE) / longer
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _upsample(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Gaussian, not bicubic: no overshoot, and no visible squares.
    width, height = size
    large = _spread(height, weights.shape[0]) @ weights @ _spread(width, weights.shape[1]).T
    return large / max(float(large.max()), np.finfo(np.float32).tiny)


def _spread(pixels: int, patches: int) -> np.ndarray:
    at_pixels = (np.arange(pixels) + 0.5) / pixels * patches
    at_patches = np.arange(patches) + 0.5
    nearness = np.exp(-0.5 * ((at_pixels[:, None] - at_patches) / SPREAD) ** 2)
    return nearness / nearness.sum(axis=1, keepdims=True)


def _colour(strength: np.ndarray) -> np.ndarray:
    channels = [np.interp(strength, _STOPS, _COLOURS[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1)


def _with_caption(picture: Image.Image, caption: str) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    lines = _wrap(caption, font, picture.width - 2 * _MARGIN)
    line_height = _FONT_SIZE + 5
    strip = 2 * _MARGIN + line_height * len(lines)
    canvas = Image.new("RGB", (picture.width, picture.height + strip), (24, 20, 20))
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        top = picture.height + _MARGIN + number * line_height
        draw.text((_MARGIN, top), line, font=font, fill=(250, 236, 214))
    return canvas


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines: list[str] = []
    # Two spaces separate word-and-number pairs, so that a line never breaks inside one.
    for piece in text.split("  "):
        joined = f"{lines[-1]}   {piece}" if lines else piece
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(piece)
    return lines
