"""Turn what Pillow decoded into 8-bit RGB, upright."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from PIL import ExifTags, Image, ImageCms

from lexvla.errors import InputError

__all__ = ["DECODE_ERRORS", "Warn", "orientation_number", "orientation_of", "to_rgb", "turn"]

Warn = Callable[[str], None]  # takes what was lost of a picture that was read

# Pillow's readers raise all of these, and no type of their own, for bytes that they do not expect.
DECODE_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_TRANSPOSITIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND = 1 << 20  # pixels
_WHITE = (255, 255, 255, 255)
_SAMPLE_FORMAT = 339  # of TIFF


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's number of how an image lies: 1, upright, to 8."""
    try:
        return orientation_number(image.getexif().get(ExifTags.Base.Orientation)) or 1
    except DECODE_ERRORS:  # damaged EXIF says nothing about the pixels
        return 1


def orientation_number(value: object) -> int:
    """Return EXIF's orientation, 1 to 8; 0 for anything else."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 0


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image upright."""
    if orientation == 1:
        return image
    turned = image.transpose(_TRANSPOSITIONS[orientation])
    # Without what says how to turn it: it may be opened again.
    turned.info = {key: image.info[key] for key in image.info.keys() & {"transparency"}}
    return turned


def to_rgb(image: Image.Image, name: str, warn: Warn) -> Image.Image:
    """Return a decoded image in mode RGB, with transparency laid over white.

    16-bit grey is scaled to 8 bits, as are floats from 0 to 1. Numbers of another range are
    stretched from the least to the greatest, with a warning.

    Raises:
        InputError: The mode has no reading as colour, its palette is missing, or there is no finite
            number.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("P", "PA") and image.palette is None:
        raise InputError(name, "its palette is missing")
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            image = _eight_bits(image, name, warn)
        if image.mode == "LAB":
            lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
        if not image.has_transparency_data:
            return image.convert("RGB")
        made = Image.new("RGB", image.size)
        for rows in _bands(*image.size):
            colour = image.crop((0, rows.start, image.width, rows.stop)).convert("RGBA")
            white = Image.new("RGBA", colour.size, _WHITE)
            made.paste(Image.alpha_composite(white, colour).convert("RGB"), (0, rows.start))
        return made
    except (ValueError, OSError, ImageCms.PyCMSError) as error:
        raise InputError(name, f"mode {image.mode} cannot become RGB ({error})") from error


def _eight_bits(image: Image.Image, name: str, warn: Warn) -> Image.Image:
    """Return grey of 16 or 32 bits or of floats as 8 bits; 16-bit v becomes round(v / 257)."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        return Image.fromarray(_of_floats(values, name, warn))
    if values.dtype.itemsize > 2 and _is_unsigned(image):
        values = values.view(np.uint32)
    # Pillow has 32-bit grey too, mostly as a container of 16-bit values.
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 0xFFFF):
        return Image.fromarray(_stretched(values, warn))
    transparent = image.info.get("transparency")

    def scale(band: np.ndarray) -> np.ndarray:
        deep = band.astype(np.uint16)
        whole = deep // 257
        grey = whole + (deep - 257 * whole > 128)
        if isinstance(transparent, int):
            grey[band == transparent] = 255
        return grey

    return Image.fromarray(_by_bands(values, scale))


def _bands(width: int, height: int) -> Iterator[slice]:
    """Yield rows that are converted at a time: that takes several copies, of many bytes a pixel."""
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _by_bands(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    made = np.empty(values.shape, np.uint8)
    for rows in _bands(values.shape[1], values.shape[0]):
        made[rows] = convert(values[rows])
    return made


def _is_unsigned(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_SAMPLE_FORMAT, (1,)) in (1, (1,))


def _of_floats(values: np.ndarray, name: str, warn: Warn) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():
        raise InputError(name, "has no finite number for a pixel")
    if not finite.all():
        warn("pixels that are not finite numbers are shown black")
        values = np.where(finite, values, values[finite].min())
    if values.min() >= 0 and values.max() <= 1:
        return _by_bands(values, lambda band: np.rint(band * 255))
    return _stretched(values, warn)


def _stretched(values: np.ndarray, warn: Warn) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    warn(f"its values have no stated range: {low:g} is shown black, and {high:g} white")
    scale = 255 / (high - low) if high > low else 0.0
    return _by_bands(values, lambda band: np.rint((band.astype(np.float64) - low) * scale))
