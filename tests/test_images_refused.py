from __future__ import annotations

import io
import os
import resource
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_bytes import encoded, noise, png
from lexvla.errors import InputError
from lexvla.image_formats import MAX_PIXELS
from lexvla.images import open_image

# What PIL says of damaged metadata, which is damaged on purpose here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
    pytest.mark.filterwarnings("ignore:Truncated File Read"),
]


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.zeros((4, 4), np.float32), "must be uint8, not float32"),
        (np.zeros((4, 4, 3), np.int64), "must be uint8, not int64"),
        (np.zeros((4, 4), bool), "must be uint8, not bool"),
        (np.zeros((3, 4, 4, 3), np.uint8), "not 3x4x4x3"),
        (np.zeros((4, 4, 2), np.uint8), "not 4x4x2"),
        (np.zeros(4, np.uint8), "not 4"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.uint8), "no pixels"),
    ],
)
def test_bad_arrays(array: np.ndarray, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        open_image(array, name="the array")
    assert caught.value.item == "the array"


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "pipe")
    for name, rule in {
        "missing.png": "no such file",
        "": "is a directory",
        "empty.png": "is empty",
        "text.jpg": "not an image of a known format",
        "drawing.eps": "not an image of a known format",
        "pipe": "not a regular file",
        "text.jpg/below.png": "cannot be read",
        "n" * 300: "cannot be read",
        "null\0byte": "not a valid path",
    }.items():
        with pytest.raises(InputError, match=rule) as caught:
            open_image(tmp_path / name)
        assert caught.value.item.startswith(str(tmp_path))


def test_a_value_of_another_type() -> None:
    with pytest.raises(InputError, match="value of type int"):
        open_image(3)  # type: ignore[arg-type]


def test_a_lazy_image_of_another_format_is_refused() -> None:
    data = encoded(noise(), "PPM")
    with (
        Image.open(io.BytesIO(data)) as image,
        pytest.raises(InputError, match="PPM is not a known"),
    ):
        open_image(image)


def test_a_palette_that_is_missing() -> None:
    with pytest.raises(InputError, match="its palette is missing"):
        open_image(png((2, 1, 8, 3), b"\0\1\2"))


def test_a_closed_image_is_refused(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(InputError, match="cannot be decoded"):
        open_image(image)


SAMPLES: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(noise(), "PNG"),
    "jpeg": lambda: encoded(noise(), "JPEG"),
    "webp": lambda: encoded(noise(), "WEBP"),
    "webp-lossless": lambda: encoded(noise(), "WEBP", lossless=True),
    "gif": lambda: encoded(noise("L"), "GIF"),
    "bmp": lambda: encoded(noise(), "BMP"),
    "tiff": lambda: encoded(noise(), "TIFF"),
    "tiff-lzw": lambda: encoded(noise(), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("part", [0.02, 0.1, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    data = SAMPLES[kind]()
    with pytest.raises(InputError, match="truncated"):
        open_image(data[: max(12, int(len(data) * part))])


@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_bytes_raise_nothing_else(kind: str) -> None:
    data = SAMPLES[kind]()
    rng = np.random.default_rng(11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PIL tells of damaged metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for _ in range(150):
            damaged = bytearray(data)
            for at in rng.integers(4, min(len(data), 400), size=rng.integers(1, 6)):
                damaged[at] = rng.integers(0, 256)
            try:
                result = open_image(bytes(damaged), max_pixels=10**6)
            except InputError:
                continue
            assert result.mode == "RGB"


def bombs() -> dict[str, bytes]:
    side = 30_000
    one = Image.new("RGB", (1, 1))
    gif = bytearray(encoded(one, "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(encoded(one, "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    jpeg = bytearray(encoded(one, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    tiff = bytearray(encoded(one, "TIFF"))
    for tag in (256, 257):
        entry = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[entry + 8 : entry + 12] = struct.pack("<I", side)
    webp = bytearray(encoded(one, "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", (16_383) | 16_383 << 14)  # a side may have 16,384 pixels
    return {
        "PNG": png((side, side, 8, 2), b"\0" * 10**6),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "JPEG": bytes(jpeg),
        "TIFF": bytes(tiff),
        "WEBP": bytes(webp),
    }


def test_a_bomb_is_refused_from_its_header() -> None:
    data = bombs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, bomb in data.items():
            with pytest.raises(InputError, match=f"(more than {MAX_PIXELS:,}|too many) pixels"):
                open_image(bomb, name=kind)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000  # KiB; one byte a pixel would be 900,000


def test_a_limit_above_pils_own_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(encoded(noise(), "PNG")).size == (48, 40)


def test_the_limit_is_inclusive() -> None:
    data = encoded(noise(), "PNG")
    assert open_image(data, max_pixels=48 * 40).size == (48, 40)
    for source in (data, noise(), np.asarray(noise())):
        with pytest.raises(InputError, match=r"more than 1,919 pixels \(48 x 40\)"):
            open_image(source, max_pixels=48 * 40 - 1)


def test_zero_sides_in_a_header() -> None:
    with pytest.raises(InputError):
        open_image(png((0, 5, 8, 2), b""))
    with pytest.raises(InputError, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))
