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
        needs: A module that the extra brings, if the reader itself is ours.
    """

    name: str
    suffixes: tuple[str, ...]
    head: re.Pattern[bytes]
    reader: str
    extra: str = ""
    needs: str = ""

    def load_reader(self) -> Callable[[BinaryIO], ImageFile]:
        """Import the reader; `OptionalDependencyError` if its extra is not installed."""
        module, _, name = self.reader.partition(":")
        try:
            if self.needs:
                importlib.import_module(self.needs)
            reader: Callable[[BinaryIO], ImageFile] = getattr(importlib.import_module(module), name)
        except ImportError as error:
            if not self.extra:
                raise
            package = self.needs or module.partition(".")[0]
            raise OptionalDependencyError(package, self.extra) from error
        return reader


def _format(
    name: str, suffixes: str, head: bytes, reader: str, extra: str = "", needs: str = ""
) -> ImageFormat:
    pattern = re.compile(head, re.DOTALL)
    return ImageFormat(name, tuple(suffixes.split()), pattern, reader, extra, needs)


# An ISO media file names its main brand first, then those that it goes with as well.
_AVIF = rb".{4}ftyp(?:avi[fs]|mif1.{4}(?:.{4}){0,4}avi[fs])"
_HEIF = rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"
# Of Canon, Fujifilm, Olympus, Panasonic, Minolta and Sigma. Most others begin as TIFF does.
_RAW = rb"II\*\0.{4}CR|.{4}ftypcrx|II.{4}HEAPCCDR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|\0MRM|FOVb"

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
        _format(
            "RAW",
            ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .rw2 .rwl "
            ".sr2 .srf .srw .x3f",
            _RAW,
            "lexvla.raw_files:open_preview",
            extra="raw",
            needs="rawpy",
        ),
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


def format_of(head: bytes) -> ImageFormat | None:
    """Return the format of a file by its first `HEAD_BYTES` bytes; ``None`` if none fits."""
    return next((kind for kind in FORMATS.values() if kind.head.match(head)), None)
