"""Image files in memory, for the tests of image opening."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    values = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(header: tuple[int, int, int, int], rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """Write a PNG by hand: width, height, bit depth, colour type; rows with filter bytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *extra]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def _directory(at: int, tags: dict[int, tuple[str, Sequence[int] | bytes]]) -> bytes:
    """Write a directory of TIFF, for this offset of the file; each tag has a type and values."""
    entries, rest, after = b"", b"", at + 6 + 12 * len(tags)
    for tag, (kind, values) in sorted(tags.items()):
        data = (
            values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{kind}", *values)
        )
        cell = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", after + len(rest))
        rest += data + bytes(len(data) % 2) if len(data) > 4 else b""
        number = {"B": 1, "s": 2, "H": 3, "I": 4}[kind]
        entries += struct.pack("<HHI", tag, number, len(data) // struct.calcsize(kind)) + cell
    return struct.pack("<H", len(tags)) + entries + bytes(4) + rest


def dng(preview: bytes | None, size: tuple[int, int], orientation: int = 1) -> bytes:
    """Write a DNG by hand: grey raw pixels, a JPEG preview of some size, and a date."""
    jpeg, side = preview or b"", 64  # LibRaw reads no smaller one
    jpeg += bytes(len(jpeg) % 2)
    raw = np.full((side, side), 500, "<u2").tobytes()
    small_at = 8 + len(jpeg) + len(raw)
    small = _directory(
        small_at,
        {
            **{254: ("I", [1]), 256: ("I", [size[0]]), 257: ("I", [size[1]])},
            **{258: ("H", [8] * 3), 259: ("H", [7]), 262: ("H", [6]), 273: ("I", [8])},
            **{277: ("H", [3]), 278: ("I", [size[1]]), 279: ("I", [len(jpeg)])},
        },
    )
    photo_at = small_at + len(small)
    photo = _directory(photo_at, {36867: ("s", b"2024:06:01 12:30:00\0")})
    main_at = photo_at + len(photo)
    tags: dict[int, tuple[str, Sequence[int] | bytes]] = {
        **{254: ("I", [0]), 256: ("I", [side]), 257: ("I", [side]), 258: ("H", [16])},
        **{259: ("H", [1]), 262: ("H", [32803]), 271: ("s", b"Acme\0"), 272: ("s", b"Acme 1\0")},
        **{273: ("I", [8 + len(jpeg)]), 274: ("H", [orientation]), 277: ("H", [1])},
        **{278: ("I", [side]), 279: ("I", [len(raw)]), 34665: ("I", [photo_at])},
        **{33421: ("H", [2, 2]), 33422: ("B", [0, 1, 1, 2]), 50706: ("B", [1, 4, 0, 0])},
    }
    if preview is not None:
        tags[330] = ("I", [small_at])
    head = b"II*\0" + struct.pack("<I", main_at)
    return head + jpeg + raw + small + photo + _directory(main_at, tags)


def tiff(samples: np.ndarray, photometric: int, planar: bool = False, order: str = "<") -> bytes:
    """Write an uncompressed TIFF by hand, of (height, width, channels) samples of any type."""
    height, width, channels = samples.shape
    kind = samples.dtype.kind
    planes = np.moveaxis(samples, 2, 0) if planar else samples[None]
    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8 * samples.dtype.itemsize] * channels,
        259: [1],
        262: [photometric],
        273: [0] * len(strips),
        277: [channels],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planar else 1],
        339: [{"u": 1, "i": 2, "f": 3}[kind]] * channels,
    }
    at = 8 + 2 + 12 * len(tags) + 4
    later: dict[int, int] = {}  # where the values of a tag lie that has several
    for tag, values in tags.items():
        if len(values) > 1:
            later[tag] = at
            at += 4 * len(values)
    for number, strip in enumerate(strips):
        tags[273][number] = at
        at += len(strip)
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, len(values), later.get(tag, values[0]))
        for tag, values in tags.items()
    )
    rest = b"".join(struct.pack(f"{order}{len(tags[tag])}I", *tags[tag]) for tag in later)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + rest + b"".join(strips)
