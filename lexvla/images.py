"""Open images from files, bytes, arrays and PIL images, safely and always in the same form."""

from __future__ import annotations

import errno
import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lexvla.errors import InputError

__all__ = ["FORMATS", "IMAGE_SUFFIXES", "MAX_PIXELS", "ImageSource", "open_image", "resize"]

ImageSource = str | Path | bytes | Image.Image | np.ndarray

MAX_PIXELS: Final = 50_000_000


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes]
    reader: Callable[[BinaryIO], ImageFile.ImageFile]


def _format(suffixes: str, magic: bytes, reader: type[ImageFile.ImageFile]) -> _Format:
    return _Format(tuple(suffixes.split()), re.compile(magic, re.DOTALL), reader)


FORMATS: Final = {
    "JPEG": _format(".jpg .jpeg", rb"\xff\xd8\xff", JpegImageFile),
    "PNG": _format(".png", rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "WEBP": _format(".webp", rb"RIFF.{4}WEBP", WebPImageFile),
    "GIF": _format(".gif", rb"GIF8[79]a", GifImageFile),
    "BMP": _format(".bmp", rb"BM", BmpImageFile),
    "TIFF": _format(".tif .tiff", rb"II[*+]\0|MM\0[*+]", TiffImageFile),
}
IMAGE_SUFFIXES: Final = tuple(suffix for kind in FORMATS.values() for suffix in kind.suffixes)

_MAGIC_LENGTH = 12
# PIL's readers raise all of these, and no type of their own, for bytes that are not as they expect.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
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
_WHITE = (255, 255, 255, 255)


def open_image(
    source: ImageSource, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return an image in mode RGB, upright, with transparency laid over white.

    Of an animation the first frame is read. 16-bit grey is scaled to 8 bits. The size is checked
    in the header, before any pixel is decoded.

    Args:
        source: A path, the bytes of a file, a PIL image (left as it is), or a uint8 array of shape
            (height, width), (height, width, 1), (height, width, 3) or (height, width, 4).
        name: Name of the item in errors; by default the path, or the kind of source.
        max_pixels: Largest width times height.

    Raises:
        InputError: The source is missing, empty, damaged, too large, of an unknown format, or has
            no clear reading as 8-bit colour.
    """
    if isinstance(source, Image.Image):
        return _from_image(source, name or "<image>", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "<array>", max_pixels)
    if isinstance(source, bytes):
        return _from_file(io.BytesIO(source), name or "<bytes>", max_pixels)
    if isinstance(source, str | Path):
        return _from_path(Path(source), name or str(source), max_pixels)
    kind = type(source).__name__
    raise InputError(name or f"<{kind}>", f"an image cannot be read from a value of type {kind}")


def resize(image: Image.Image, side: int) -> np.ndarray:
    """Resize an RGB image to a square and return (side, side, 3) uint8."""
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0))


def _from_path(path: Path, name: str, max_pixels: int) -> Image.Image:
    try:
        if path.is_dir():
            raise InputError(name, "is a directory, not an image file")
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise InputError(name, "is not a regular file")
        with path.open("rb") as file:
            return _from_file(file, name, max_pixels)
    except FileNotFoundError as error:
        raise InputError(name, "no such file") from error
    except ValueError as error:  # a null byte in the path
        raise InputError(name, f"is not a valid path ({error})") from error
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "unknown reason")
        raise InputError(name, f"the file cannot be read ({reason})") from error


def _from_file(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    magic = file.read(_MAGIC_LENGTH)
    if not magic:
        raise InputError(name, "the file is empty")
    kind = next((kind for kind, each in FORMATS.items() if each.magic.match(magic)), None)
    if kind is None:
        raise InputError(name, f"is not an image of a known format ({', '.join(FORMATS)})")
    file.seek(0)
    # The reader is called by name, not through Image.open: that one tries formats that run other
    # programs, and warns of large images before we can refuse them.
    try:
        image = FORMATS[kind].reader(file)
    except Image.DecompressionBombError as error:
        raise InputError(name, f"has too many pixels ({error})") from error
    except _DECODE_ERRORS as error:
        raise InputError(name, f"the {kind} file is damaged or truncated ({error})") from error
    _check_size(image.size, name, max_pixels)
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise InputError(name, f"the {kind} file is damaged or truncated ({error})") from error
    return _to_rgb(_upright(image), name)


def _from_image(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image.size, name, max_pixels)
    # A file that PIL opened is not decoded yet, and may be of a format that we do not read.
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*FORMATS, "MPO"):
        raise InputError(name, f"{image.format} is not a known format ({', '.join(FORMATS)})")
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise InputError(name, f"the image cannot be decoded ({error})") from error
    upright = _to_rgb(_upright(image), name)
    return upright.copy() if upright is image else upright


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(name, f"an image array must be uint8, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        shape = "x".join(map(str, array.shape))
        rule = f"an image array must be height x width, with 1, 3 or 4 channels, not {shape}"
        raise InputError(name, rule)
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), name)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(name, f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise InputError(name, f"has more than {max_pixels} pixels ({width} x {height})")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:  # damaged EXIF says nothing about the pixels
        return image
    method = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = image.info
    return turned


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if isinstance(image, ImageFile.ImageFile) else image
    if image.mode.startswith("I"):
        image = _scale_16_bits(image, name)
    elif image.mode == "F":
        raise InputError(name, "floating-point pixels have no stated range; save it in 8 bits")
    try:
        if image.has_transparency_data:
            colour = image.convert("RGBA")
            white = Image.new("RGBA", colour.size, _WHITE)
            image = Image.alpha_composite(white, colour)
        return image.convert("RGB")
    except (ValueError, OSError) as error:
        raise InputError(name, f"mode {image.mode} cannot become RGB ({error})") from error


def _scale_16_bits(image: Image.Image, name: str) -> Image.Image:
    """Return 16-bit grey as 8 bits, each value v as round(v / 257)."""
    values = np.asarray(image).astype(np.int64)
    # PIL has 32-bit grey too, mostly as a container of 16-bit values.
    if values.min() < 0 or values.max() > 0xFFFF:
        raise InputError(name, "grey of 32 bits has no stated range; save it in 8 or 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
