"""Decode image files: within limits, no larger than needed, and in spite of harmless damage."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import BinaryIO, Final

from PIL import Image, ImageFile

from lexvla.errors import InputError, OptionalDependencyError
from lexvla.image_formats import FORMATS, HEAD_BYTES, ImageFormat, format_of
from lexvla.raw_files import NO_PREVIEW, is_raw
from lexvla.rgb import DECODE_ERRORS, Warn, orientation_of, to_rgb, turn

__all__ = ["check_size", "decode_file", "open_header"]

_LARGE: Final = 25_000_000  # pixels
_ONE_LARGE = threading.RLock()  # decoding takes up to 12 bytes a pixel

_PLANAR, _BITS = 284, 258  # tags of TIFF
_UNREAD_TIFF: Final = "planes of more than 8 bits"
_GREY_BITS: Final = {"L;2": 2, "L;4": 4}  # by Pillow's name for how pixels are packed
_PNG_HEAD: Final = b"\x89PNG\r\n\x1a\n"
# What the pixels need. The rest is text, colour profiles and the like.
_PNG_PIXELS: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"})
_JPEG_END: Final = b"\xff\xd9"
_JUNK: Final = b"\x55\xaa\x33" * 32  # Huffman codes, were they read as such


def decode_file(
    file: BinaryIO, name: str, max_pixels: int, least_side: int | None, warn: Warn
) -> Image.Image:
    """Return the picture in a file as upright RGB; see `open_image` for the arguments."""
    image, kind = open_header(file, name, warn)
    check_size(image.size, name, max_pixels)
    if kind.name == "PNG":
        _scale_colour_key(image)
    if least_side is not None and image.format == "JPEG":
        image.draft(None, (least_side, least_side))
    with _ONE_LARGE if image.width * image.height > _LARGE else nullcontext():
        try:
            image.load()
        except DECODE_ERRORS as error:
            whole = _ended_jpeg(file) if kind.name == "JPEG" else None
            if whole is None:
                raise _damaged(kind, name, error) from error
            warn("its end is missing, but every pixel is there")
            return decode_file(whole, name, max_pixels, least_side, warn)
        orientation = orientation_of(image)
        picture = to_rgb(image, name, warn)
        factor = 1 if least_side is None else min(picture.size) // least_side
        if factor > 1:
            picture = picture.reduce(factor)
    picture = turn(picture, orientation)
    return picture.copy() if isinstance(picture, ImageFile.ImageFile) else picture


def open_header(file: BinaryIO, name: str, warn: Warn) -> tuple[ImageFile.ImageFile, ImageFormat]:
    """Open a file with the reader of its format, without decoding its pixels.

    Raises:
        InputError: The file is empty, of an unknown format, of one whose reader is not installed,
            or damaged.
    """
    head = file.read(HEAD_BYTES)
    if not head:
        raise InputError(name, "the file is empty")
    kind = format_of(head)
    if kind is None:
        raise InputError(name, f"is not an image of a known format ({', '.join(FORMATS)})")
    file.seek(0)
    if kind.name == "TIFF" and is_raw(file):
        kind = FORMATS["RAW"]
    # The reader is called by name, not through Image.open: that one tries formats that run other
    # programs, and warns of large images before we can refuse them.
    try:
        image = kind.load_reader()(file)
        if kind.name == "TIFF" and _misread(image):
            raise SyntaxError(_UNREAD_TIFF)
        if not isinstance(image.info.get("xmp", b""), bytes | str):
            del image.info["xmp"]  # of a TIFF; Pillow would fail when it turns the picture
        return image, kind
    except OptionalDependencyError as error:
        raise InputError(name, f"is a {kind.name} file; {error}") from error
    except Image.DecompressionBombError as error:
        raise InputError(name, f"has too many pixels ({error})") from error
    except DECODE_ERRORS as error:
        bare = _bare_png(file) if kind.name == "PNG" else None
        if bare is None:
            raise _damaged(kind, name, error) from error
        try:
            image = kind.load_reader()(bare)
        except DECODE_ERRORS:
            raise _damaged(kind, name, error) from error
        warn(f"its text and colour profile were left out ({error})")
        return image, kind


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise `InputError` if a picture has no pixels, or more than allowed."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(name, f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise InputError(name, f"has more than {max_pixels:,} pixels ({width:,} x {height:,})")


def _damaged(kind: ImageFormat, name: str, error: Exception) -> InputError:
    if str(error) in (_UNREAD_TIFF, NO_PREVIEW, "unknown pixel mode"):
        return InputError(name, f"is a kind of {kind.name} file that is not read ({error})")
    return InputError(name, f"the {kind.name} file is damaged or truncated ({error})")


def _misread(image: ImageFile.ImageFile) -> bool:
    """Tell whether Pillow takes the wrong bytes: of planes of over 8 bits."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (8,))) > 8


def _scale_colour_key(image: ImageFile.ImageFile) -> None:
    """Bring the transparent colour of a PNG to 8 bits, as Pillow does with the pixels alone."""
    key, packing = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if packing in _GREY_BITS and isinstance(key, int):
        most = 2 ** _GREY_BITS[packing] - 1
        image.info["transparency"] = (key & most) * 255 // most
    elif packing == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _bare_png(file: BinaryIO) -> BinaryIO | None:
    """Return a PNG with nothing but what its pixels need; ``None`` if it has nothing else."""
    file.seek(0)
    data = file.read()
    kept = [data[start:end] for kind, start, end in _png_chunks(data) if kind in _PNG_PIXELS]
    bare = _PNG_HEAD + b"".join(kept)
    return None if len(bare) == len(data) else io.BytesIO(bare)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = len(_PNG_HEAD)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def _ended_jpeg(file: BinaryIO) -> BinaryIO | None:
    """Return a JPEG with its end marker added, if nothing else is missing; ``None`` otherwise.

    A decoder fills up pixels that are missing. So bytes that would be pixels are added before the
    marker: they change the picture unless all of it was there.
    """
    file.seek(0)
    data = file.read().rstrip(b"\xff")
    seen = set()
    for junk in (b"", _JUNK):
        try:
            image = FORMATS["JPEG"].load_reader()(io.BytesIO(data + junk + _JPEG_END))
            image.load()
        except DECODE_ERRORS:
            return None
        seen.add(hashlib.sha256(image.tobytes()).digest())
    return io.BytesIO(data + _JPEG_END) if len(seen) == 1 else None
