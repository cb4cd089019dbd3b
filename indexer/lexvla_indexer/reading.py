"""How to read the files of a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lexvla.image_formats import MAX_PIXELS

__all__ = ["DEFAULT_EXCLUDES", "Reading"]

# What systems and programs put beside people's pictures: hidden files and folders (.thumbnails
# among them), and the folders of Synology, QNAP and macOS archives.
DEFAULT_EXCLUDES: Final = (".*", "@eaDir/", r"\#recycle/", "__MACOSX/")


@dataclass(frozen=True)
class Reading:
    """How to read the files of a source.

    Attributes:
        exclude: Patterns of ``.gitignore`` files, matched with paths under a folder of images.
        default_excludes: Whether `DEFAULT_EXCLUDES` come before these.
        max_pixels: Largest width times height of an image.
        exif: Whether to store what the files say of their photographs; see `PhotoMetadata`.
    """

    exclude: tuple[str, ...] = ()
    default_excludes: bool = True
    max_pixels: int = MAX_PIXELS
    exif: bool = True

    @property
    def patterns(self) -> tuple[str, ...]:
        """All patterns in the order in which they count: the last that matches decides."""
        return (*(DEFAULT_EXCLUDES if self.default_excludes else ()), *self.exclude)
