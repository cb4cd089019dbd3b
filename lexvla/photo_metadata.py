"""What a photograph's file says of it: EXIF, IPTC and XMP."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

from lexvla.errors import InputError
from lexvla.image_files import open_header
from lexvla.rgb import DECODE_ERRORS, orientation_number

__all__ = ["PhotoMetadata", "read_photo_metadata"]

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_CHARSET, _TITLE, _KEYWORDS, _CAPTION = (1, 90), (2, 5), (2, 25), (2, 120)  # of IPTC
_UTF8 = b"\x1b%G"


@dataclass(frozen=True)
class PhotoMetadata:
    """What a file says of its photograph; empty where it says nothing.

    Attributes:
        fields: Of EXIF: ``taken`` (local time as ``2024-06-01T12:30:00``), ``camera``, ``lens``,
            ``orientation`` (1, upright, to 8), ``latitude`` and ``longitude`` (degrees, north and
            east above 0). ``tags``: the keywords of XMP and IPTC, a list.
        text: Title, caption and keywords, a line each.
    """

    fields: dict[str, str | float | list[str]] = field(default_factory=dict)
    text: str = ""


def read_photo_metadata(data: bytes) -> PhotoMetadata:
    """Read what a file says, without decoding its pixels; damaged parts say nothing."""
    try:
        image, kind = open_header(io.BytesIO(data), "", lambda lost: None)
    except InputError:
        return PhotoMetadata()
    # Not getexif for the others: of a PNG, it decodes the pixels.
    exif = _exif(image if kind.name == "TIFF" else None, image.info.get("exif"))
    if kind.name == "RAW":
        exif = _exif(None, data) or exif  # if it begins as TIFF does; LibRaw passes less on
    fields: dict[str, Any] = {} if exif is None else _of_exif(exif)
    titles, captions, keywords = (
        _unique([*xmp, *iptc]) for xmp, iptc in zip(_of_xmp(image), _of_iptc(image), strict=True)
    )
    if keywords:
        fields["tags"] = keywords
    lines = _unique([*titles[:1], *captions[:1], ", ".join(keywords)])
    return PhotoMetadata(fields, "\n".join(lines))


def _exif(image: Image.Image | None, data: bytes | None) -> Image.Exif | None:
    try:
        if image is not None:
            return image.getexif()
        exif = Image.Exif()
        exif.load(data or b"")
    except DECODE_ERRORS:
        return None
    return exif


def _of_exif(exif: Image.Exif) -> dict[str, Any]:
    photo, place = _ifd(exif, ExifTags.IFD.Exif), _ifd(exif, ExifTags.IFD.GPSInfo)
    base, gps = ExifTags.Base, ExifTags.GPS
    said: dict[str, Any] = {
        "taken": _moment(photo.get(base.DateTimeOriginal) or photo.get(base.DateTimeDigitized)),
        "camera": _utf8(_get(exif, base.Model)),
        "lens": _utf8(photo.get(base.LensModel)),
        "orientation": orientation_number(_get(exif, base.Orientation)),
    }
    said = {name: value for name, value in said.items() if value}
    latitude = _degrees(place.get(gps.GPSLatitude), place.get(gps.GPSLatitudeRef), "NS", 90)
    longitude = _degrees(place.get(gps.GPSLongitude), place.get(gps.GPSLongitudeRef), "EW", 180)
    # Both are 0 where the camera never found its place.
    if latitude is not None and longitude is not None and (latitude or longitude):
        said.update(latitude=latitude, longitude=longitude)
    return said


def _ifd(exif: Image.Exif, which: int) -> dict[int, Any]:
    try:
        return dict(exif.get_ifd(which))
    except DECODE_ERRORS:
        return {}


def _get(exif: Image.Exif, tag: int) -> Any:
    try:
        return exif.get(tag)
    except DECODE_ERRORS:
        return None


def _moment(value: object) -> str:
    try:
        return datetime.strptime(_plain(value), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:  # 0000:00:00 00:00:00 is usual where the clock was never set
        return ""


def _degrees(value: Any, side: object, sides: str, most: float) -> float | None:
    try:
        degrees, minutes, seconds = (float(part) for part in value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    found = degrees + minutes / 60 + seconds / 3600
    letter = _plain(side).upper()[:1]
    if not letter or letter not in sides or not math.isfinite(found) or not 0 <= found <= most:
        return None
    return round(-found if letter == sides[1] else found, 7)  # 7 places are a centimetre


def _of_xmp(image: ImageFile.ImageFile) -> tuple[list[str], list[str], list[str]]:
    """Return the titles, captions and keywords."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    data = image.info.get("xmp")
    if not data:
        return [], [], []
    try:
        tree = fromstring(data.strip(b"\0 \r\n\t") if isinstance(data, bytes) else data)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return [], [], []
    titles, captions, keywords = (
        [
            _plain(item.text)
            for found in tree.iter(f"{_DC}{name}")
            for item in found.iter(f"{_RDF}li")
        ]
        for name in ("title", "description", "subject")
    )
    return titles, captions, keywords


def _of_iptc(image: ImageFile.ImageFile) -> tuple[list[str], list[str], list[str]]:
    """Return the titles, captions and keywords."""
    try:
        records: dict[Any, Any] = IptcImagePlugin.getiptcinfo(image) or {}
    except DECODE_ERRORS:
        records = {}

    def read(tag: tuple[int, int]) -> list[str]:
        value = records.get(tag, [])
        return [_decoded(each, records) for each in (value if isinstance(value, list) else [value])]

    return read(_TITLE), read(_CAPTION), read(_KEYWORDS)


def _decoded(data: bytes, records: dict[Any, Any]) -> str:
    try:
        return _plain(data.decode())
    except UnicodeDecodeError:
        utf8 = records.get(_CHARSET) == _UTF8
        return _plain(data.decode("utf-8", "replace") if utf8 else data.decode("latin-1"))


def _plain(value: object) -> str:
    """Return a text without what no text has: bytes after a NUL, control characters, surrogates."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return ""
    text = value.partition("\0")[0].encode("utf-8", "replace").decode()
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip()


def _utf8(value: object) -> str:
    """Return a text of EXIF, which Pillow reads as Latin-1, as it was meant."""
    with suppress(UnicodeError):
        return _plain(value.encode("latin-1").decode() if isinstance(value, str) else value)
    return _plain(value)


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))
