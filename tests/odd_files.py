"""A corpus of odd files, such as photo libraries have, each with what should become of it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from image_bytes import encoded, noise, png, png_chunk, tiff

READ, IGNORED, EXCLUDED = "read", "ignored", "excluded"
LOSS, REJECTED = "loss: ", "rejected: "  # with a part of what is said


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _jpegs() -> dict[str, tuple[bytes, str]]:
    image = noise()
    plain, progressive = encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True)
    frames = [noise("RGB", (16, 16)), noise("RGB", (16, 16))]
    ended = LOSS + "its end is missing"
    return {
        **{
            f"turned{number}.jpg": (encoded(image, "JPEG", exif=_exif(number)), READ)
            for number in range(1, 9)
        },
        **{f"suffix{suffix}": (plain, READ) for suffix in (".jpg", ".JPEG", ".jpe", ".jfif")},
        "progressive.jpg": (progressive, READ),
        "grey.jpg": (encoded(noise("L"), "JPEG"), READ),
        "cmyk.jpg": (encoded(noise("CMYK"), "JPEG"), READ),
        "several.jpg": (encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]), READ),
        "called.png": (plain, READ),
        "more after the end.jpg": (plain + b"more" * 100, READ),
        "no end.jpg": (plain[:-2], ended),
        "half an end.jpg": (plain[:-1], ended),
        "progressive, no end.jpg": (progressive[:-2], ended),
        "a bit short.jpg": (plain[:-20], REJECTED + "truncated"),
        "half.jpg": (plain[: len(plain) // 2], REJECTED + "truncated"),
        "progressive half.jpg": (progressive[: len(progressive) // 2], REJECTED + "truncated"),
        "start.jpg": (plain[:3], REJECTED + "damaged"),
        "empty.jpg": (b"", REJECTED + "empty"),
        "text.jpg": (b"hello", REJECTED + "not an image"),
        "wrong exif.jpg": (
            encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
            READ,
        ),
    }


def _pngs() -> dict[str, tuple[bytes, str]]:
    image = noise()
    plain = encoded(image, "PNG")
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "a long text " * 200_000, zip=True)
    at = plain.index(b"IDAT") - 4
    broken = png_chunk(b"tEXt", b"title\0heart")[:-1] + b"?"
    left_out = LOSS + "its text and colour profile were left out"
    return {
        **{
            f"{mode}.png": (encoded(noise(mode), "PNG"), READ)
            for mode in ("RGB", "RGBA", "L", "LA", "1", "P")
        },
        "16 bits.png": (encoded(Image.fromarray(np.full((9, 9), 999, np.uint16)), "PNG"), READ),
        "see through.png": (encoded(noise("P"), "PNG", transparency=1), READ),
        "animated.png": (encoded(image, "PNG", save_all=True, append_images=[image]), READ),
        "long text.png": (encoded(image, "PNG", pnginfo=text), left_out),
        "long profile.png": (encoded(image, "PNG", icc_profile=bytes(2 << 20)), left_out),
        "broken text.png": (plain[:at] + broken + plain[at:], left_out),
        "half.png": (plain[: len(plain) // 2], REJECTED + "truncated"),
        "huge.png": (png((60_000, 60_000, 8, 2), b""), REJECTED + "more than 256,000,000 pixels"),
        "no pixels.png": (png((0, 5, 8, 2), b""), REJECTED),
    }


def _others() -> dict[str, tuple[bytes, str]]:
    image = noise()
    gif, webp = encoded(noise("L"), "GIF"), encoded(image, "WEBP")
    heads = {"heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"}
    return {
        "a.webp": (webp, READ),
        "lossless.webp": (encoded(image, "WEBP", lossless=True), READ),
        "moving.webp": (encoded(image, "WEBP", save_all=True, append_images=[image]), READ),
        "half.webp": (webp[: len(webp) // 2], REJECTED + "truncated"),
        "a.gif": (gif, READ),
        "moving.gif": (encoded(image, "GIF", save_all=True, append_images=[noise("L")]), READ),
        "see through.gif": (encoded(noise("P"), "GIF", transparency=3), READ),
        "half.gif": (gif[: len(gif) // 2], REJECTED + "truncated"),
        "a.bmp": (encoded(image, "BMP"), READ),
        "1.bmp": (encoded(noise("1"), "BMP"), READ),
        "P.bmp": (encoded(noise("P"), "BMP"), READ),
        "a.avif": (encoded(image, "AVIF"), READ),
        "half.avif": (encoded(image, "AVIF")[:200], REJECTED + "damaged"),
        "start.heic": (heads["heic"], REJECTED + "HEIF"),
        "raw.NEF": (b"II*\0", REJECTED + "damaged"),
        "raw.xmp": (b"hello", IGNORED),
        "film.mp4": (b"\0\0\0\x18ftypisom", IGNORED),
        "notes.txt": (b"hello", IGNORED),
        "README": (b"hello", IGNORED),
    }


def _tiffs() -> dict[str, tuple[bytes, str]]:
    image = noise()
    rgb = np.asarray(image)
    packed = {kind: encoded(image, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg")}
    unread = REJECTED + "a kind of TIFF file that is not read"
    floats = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10, 1)
    stretched = LOSS + "no stated range"
    return {
        "a.tif": (encoded(image, "TIFF"), READ),
        "lzw.tiff": (packed["tiff_lzw"], READ),
        "jpeg.tiff": (packed["jpeg"], READ),
        "fax.tiff": (encoded(noise("1"), "TIFF", compression="group4"), READ),
        "pages.tiff": (encoded(image, "TIFF", save_all=True, append_images=[noise("L")]), READ),
        "palette.tiff": (encoded(noise("P"), "TIFF"), READ),
        "cmyk.tiff": (encoded(noise("CMYK"), "TIFF"), READ),
        "lab.tiff": (tiff(rgb, 8), READ),
        "planes.tiff": (tiff(rgb, 2, planar=True), READ),
        "16 bits.tiff": (tiff(rgb.astype(np.uint16) * 257, 2), READ),
        "16 bits, big end.tiff": (tiff(rgb.astype(np.uint16) * 257, 2, order=">"), READ),
        "16 bits in planes.tiff": (tiff(rgb.astype(np.uint16), 2, planar=True), unread),
        "floats.tiff": (tiff(floats, 1), READ),
        "far floats.tiff": (tiff(1000 * floats, 1), stretched),
        "no numbers.tiff": (tiff(np.full_like(floats, np.nan), 1), REJECTED + "no finite number"),
        "double.tiff": (tiff(floats.astype(np.float64), 1), unread),
        "colour floats.tiff": (tiff(floats.reshape(2, 10, 3), 2), unread),
        "32 bits.tiff": (tiff((floats * 1e6).astype(np.int32), 1), stretched),
        "half.tiff": (encoded(image, "TIFF")[:900], REJECTED + "truncated"),
        "head.tiff": (b"II*\0" + struct.pack("<I", 8), REJECTED + "damaged"),
    }


def _names() -> dict[str, tuple[bytes, str]]:
    data = encoded(noise("L", (8, 8)), "PNG")
    read = [
        *("new\nline.png", "a\tb.png", os.fsdecode(b"caf\xe9.png"), "100%.png", "a%20b.png"),
        *("日本.png", " space .png", "quote'\"\\.png", "/".join(["d" * 150] * 5) + "/long.png"),
    ]
    excluded = (".hidden.png", ".thumbnails/t.png", "@eaDir/t.png", "#recycle/r.png")
    left_out = dict.fromkeys((*excluded, "__MACOSX/._a.png"), (data, EXCLUDED))
    return {**dict.fromkeys(read, (data, READ)), **left_out}


def odd_files() -> dict[str, tuple[bytes, str]]:
    """Return the bytes of each file, by its path, and what should become of it."""
    return {**_jpegs(), **_pngs(), **_others(), **_tiffs(), **_names()}


def save_odd_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Write the corpus into a folder, and return it."""
    files = odd_files()
    for name, (data, _) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files
