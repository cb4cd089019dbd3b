"""The one table of image formats: suffixes, first bytes and readers; and the limit of size."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from lexvla.errors import OptionalDependencyError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

__all__ = [
    "FORMATS",
    "HEAD_BYTES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "RAW_SUFFIXES",
    "ImageFormat",
    "format_of",
]

MAX_PIXELS: Final = 256_000_000  # above the 200 megapixels of today's phones
HEAD_BYTES: Final = 40  # of a file, which tell its format


@dataclass(frozen=True)
class ImageFormat:
    """A format of image files.

    Attributes:
        reader: Module and class, a Pillow plugin, imported when it is needed.
        extra: The extra that brings the module; empty if the base install has it.
    """

    name: str
    suffixes: tuple[str, ...]
    head: re.Pattern[bytes]
    reader: str
    extra: str = ""

    def load_reader(self) -> Callable[[BinaryIO], ImageFile]:
        """Import the reader; `OptionalDependencyError` if its extra is not installed."""
        module, _, name = self.reader.partition(":")
        try:
            reader: Callable[[BinaryIO], ImageFile] = getattr(importlib.import_module(module), name)
        except ImportError as error:
            if not self.extra:
                raise
            raise OptionalDependencyError(module.partition(".")[0], self.extra) from error
        return reader


def _format(name: str, suffixes: str, head: bytes, reader: str, extra: str = "") -> ImageFormat:
    return ImageFormat(name, tuple(suffixes.split()), re.compile(head, re.DOTALL), reader, extra)


# An ISO media file names its main brand first, then those that it goes with as well.
_AVIF = rb".{4}ftyp(?:avi[fs]|mif1.{4}(?:.{4}){0,4}avi[fs])"
_HEIF = rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"

FORMATS: Final = {
    each.name: each
    for each in (
        _format(
            "JPEG",
            ".jpg .jpeg .jpe .jfif",
            rb"\xff\xd8\xff",
            "PIL.JpegImagePlugin:JpegImageFile",
        ),
        _format("PNG", ".png", rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin:PngImageFile"),
        _format("WEBP", ".webp", rb"RIFF.{4}WEBP", "PIL.WebPImagePlugin:WebPImageFile"),
        _format("GIF", ".gif", rb"GIF8[79]a", "PIL.GifImagePlugin:GifImageFile"),
        _format("BMP", ".bmp", rb"BM", "PIL.BmpImagePlugin:BmpImageFile"),
        _format("TIFF", ".tif .tiff", rb"II[*+]\0|MM\0[*+]", "PIL.TiffImagePlugin:TiffImageFile"),
        _format("AVIF", ".avif", _AVIF, "PIL.AvifImagePlugin:AvifImageFile"),
        _format(
            "HEIF", ".heic .heif .hif", _HEIF, "pillow_heif.as_plugin:HeifImageFile", extra="heif"
        ),
        _format(
            "JXL",
            ".jxl",
            rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
            "pillow_jxl.JpegXLImagePlugin:JXLImageFile",
            extra="jxl",
        ),
    )
}
IMAGE_SUFFIXES: Final = tuple(suffix for kind in FORMATS.values() for suffix in kind.suffixes)

# What cameras write before anything is developed. Not read; named where files are counted.
RAW_SUFFIXES: Final = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)


def format_of(head: bytes) -> ImageFormat | None:
    """Return the format of a file by its first `HEAD_BYTES` bytes; ``None`` if none fits."""
    return next((kind for kind in FORMATS.values() if kind.head.match(head)), None)
