"""RAW files of cameras: how they are told from TIFF, and the JPEG pictures in them."""

from __future__ import annotations

import io
from typing import BinaryIO, Final

from PIL import TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from lexvla.rgb import DECODE_ERRORS

__all__ = ["NO_PREVIEW", "is_raw", "open_preview"]

NO_PREVIEW: Final = "it has no JPEG preview"

_KIND, _COMPRESSION, _MAKE, _DNG = 254, 259, 271, 50706  # tags of TIFF
# Compressions of Sony, Samsung (two), Nikon and Pentax.
_OF_CAMERAS: Final = (32767, 32769, 32770, 34713, 65535)


def is_raw(tiff: BinaryIO) -> bool:
    """Tell whether a TIFF is a RAW file: a DNG, or a camera's with a small picture first."""
    start = tiff.tell()
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(tiff.read(8))
        tiff.seek(tags.next)
        tags.load(tiff)
        of_camera = tags.get(_KIND, 0) & 1 or tags.get(_COMPRESSION) in _OF_CAMERAS
        return _DNG in tags or (_MAKE in tags and bool(of_camera))
    except DECODE_ERRORS:
        return False
    finally:
        tiff.seek(start)


def open_preview(file: BinaryIO) -> JpegImageFile:
    """Open the largest JPEG picture in a RAW file; its EXIF has the orientation.

    ImportError without rawpy; SyntaxError if there is no such picture, or the file is damaged.
    """
    import rawpy

    try:
        with rawpy.imread(file) as raw:
            preview = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError) as error:
        raise SyntaxError(NO_PREVIEW) from error
    except rawpy.LibRawError as error:
        raise SyntaxError(str(error)) from error
    if not isinstance(preview.data, bytes):  # but pixels
        raise SyntaxError(NO_PREVIEW)
    return JpegImageFile(io.BytesIO(preview.data))
