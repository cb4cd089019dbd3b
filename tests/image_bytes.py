"""Image files in memory, for the tests of image opening."""

from __future__ import annotations

import io
import struct
import zlib

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
