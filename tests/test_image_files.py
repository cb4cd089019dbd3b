"""Files that are read in spite of something, and pictures larger than anyone needs."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from image_bytes import dng, encoded, noise, png_chunk, tiff
from lexvla.errors import InputError
from lexvla.image_formats import (
    FORMATS,
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    format_of,
)
from lexvla.images import image_size, open_image
from lexvla.photo_metadata import read_photo_metadata
from lexvla.raw_files import is_raw


def opened(data: bytes, **options: object) -> tuple[Image.Image, list[str]]:
    told: list[str] = []
    return open_image(data, warn=told.append, **options), told


# Formats


def test_suffixes_are_of_one_format_each() -> None:
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)
    assert {".jfif", ".jpe", ".avif", ".heic", ".heif", ".jxl", ".dng", ".cr3"} <= set(
        IMAGE_SUFFIXES
    )


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "RAW"])
def test_every_format_is_read(kind: str) -> None:
    modules = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
    if kind in modules:
        plugin = pytest.importorskip(modules[kind])
        if kind == "HEIF":
            plugin.register_heif_opener()
    colour = Image.new("RGB", (16, 16), (200, 30, 60))
    data = encoded(colour, kind)
    found = format_of(data[:HEAD_BYTES])
    assert found is not None
    assert found.name == kind
    image, told = opened(data)
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 60)).max() <= 3
    assert told == []


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypavis\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41", None),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    ],
)
def test_formats_in_boxes_are_told_apart(head: bytes, kind: str | None) -> None:
    found = format_of(head)
    assert (None if found is None else found.name) == kind


def test_a_reader_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pillow_heif", "pillow_heif.as_plugin"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"is a HEIF file; .*pip install 'lexvla\[heif\]'"):
        open_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


# RAW files

PREVIEW = Image.new("RGB", (2000, 1500), (200, 30, 60))
PREVIEW.paste((0, 0, 255), (0, 0, 2000, 100))  # the top


@pytest.mark.parametrize(
    ("orientation", "blue"), [(1, (600, 10)), (3, (600, 740)), (6, (740, 600))]
)
def test_the_preview_of_a_raw_file_is_read_upright(orientation: int, blue: tuple[int, int]) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy: pip install 'lexvla[raw]'")
    data = dng(encoded(PREVIEW, "JPEG"), PREVIEW.size, orientation)
    image, told = opened(data, least_side=640)
    assert (image.size, told) == ((1000, 750) if orientation < 5 else (750, 1000), [])
    assert np.abs(np.subtract(image.getpixel(blue), (0, 0, 255))).max() <= 5
    assert np.abs(np.subtract(image.getpixel((375, 375)), (200, 30, 60))).max() <= 5
    assert image_size(data, "a.dng") == PREVIEW.size
    said = read_photo_metadata(data).fields
    assert said == {"taken": "2024-06-01T12:30:00", "camera": "Acme 1", "orientation": orientation}


def test_raw_files_that_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dng(encoded(PREVIEW, "JPEG"), PREVIEW.size)
    if importlib.util.find_spec("rawpy"):
        with pytest.raises(InputError, match=r"RAW file that is not read .*no JPEG preview"):
            open_image(dng(None, (1, 1)))
        with pytest.raises(InputError, match="the RAW file is damaged"):
            open_image(b"FUJIFILMCCD-RAW and no more")
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(InputError, match=r"is a RAW file; rawpy is not .*'lexvla\[raw\]'"):
        open_image(data)


@pytest.mark.parametrize(
    ("kind", "make", "compression", "raw"),
    [
        (1, b"Acme\0", 1, True),
        (0, b"Acme\0", 1, False),
        (0, b"Acme\0", 34713, True),
        (1, b"", 1, False),
    ],
)
def test_raw_files_are_told_from_tiff(kind: int, make: bytes, compression: int, raw: bool) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254], tags[259] = kind, compression
    if make:
        tags[271] = make.decode()
    file = io.BytesIO()
    tags.save(file)
    file.seek(0)
    assert is_raw(file) is raw
    assert file.tell() == 0


# Files that were called damaged


def test_a_jpeg_without_its_end_marker_is_whole() -> None:
    for options in ({}, {"progressive": True}):
        data = encoded(noise(), "JPEG", **options)
        for cut in (1, 2):
            image, told = opened(data[:-cut])
            np.testing.assert_array_equal(np.asarray(image), np.asarray(open_image(data)))
            assert told == ["its end is missing, but every pixel is there"]


@pytest.mark.parametrize("cut", [6, 12, 40, 200])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_pixels_is_refused(cut: int, progressive: bool) -> None:
    data = encoded(noise(), "JPEG", progressive=progressive)
    with pytest.raises(InputError, match="truncated"):
        open_image(data[:-cut])


def test_large_text_and_profiles_of_a_png_do_not_matter() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "a long text " * 200_000, zip=True)
    image = noise()
    for data in (
        encoded(image, "PNG", pnginfo=text),
        encoded(image, "PNG", icc_profile=bytes(2 << 20)),
    ):
        result, told = opened(data)
        np.testing.assert_array_equal(np.asarray(result), np.asarray(image))
        assert len(told) == 1
        assert told[0].startswith("its text and colour profile were left out")


def test_small_text_of_a_png_is_no_reason_to_warn() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("title", "a heart", zip=True)
    assert opened(encoded(noise(), "PNG", pnginfo=text))[1] == []


def test_a_bare_png_keeps_its_transparency_and_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    long = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20)))
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    whole = encoded(palette, "PNG", transparency=1, exif=exif)
    at = whole.index(b"IDAT") - 4
    image, told = opened(whole[:at] + long + whole[at:])
    assert np.asarray(image).tolist() == [[[255, 0, 0]], [[255, 255, 255]]]
    assert len(told) == 1


def test_a_png_with_damaged_pixels_stays_refused() -> None:
    data = bytearray(encoded(noise(), "PNG", icc_profile=bytes(2 << 20)))
    data[-2000:-1900] = bytes(100)
    with pytest.raises(InputError, match="damaged"):
        open_image(bytes(data))


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((1, 1, 3), np.float32),
        np.zeros((1, 1, 5), np.uint8),
        np.zeros((1, 1, 1), np.float64),
    ],
)
def test_a_tiff_that_pillow_does_not_know_is_not_called_damaged(samples: np.ndarray) -> None:
    with pytest.raises(InputError, match="a kind of TIFF file that is not read"):
        open_image(tiff(samples, photometric=2 if samples.shape[2] == 3 else 1))


def test_planes_of_16_bits_are_refused_rather_than_misread() -> None:
    with pytest.raises(InputError, match="planes of more than 8 bits"):
        open_image(tiff(np.full((1, 1, 3), 30_000, np.uint16), 2, planar=True))


# Size


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((640, 480), 240, (320, 240)),
        ((640, 480), 241, (640, 480)),
        ((479, 640), 240, (479, 640)),
        ((640, 100), 50, (320, 50)),
        ((960, 1280), 60, (60, 80)),
    ],
)
def test_a_picture_comes_smaller_but_not_below_the_least_side(
    kind: str, size: tuple[int, int], least: int, expected: tuple[int, int]
) -> None:
    gradient = np.linspace(0, 255, size[0], dtype=np.uint8)[None].repeat(size[1], 0)
    image = Image.fromarray(gradient)
    small = open_image(encoded(image, kind), least_side=least)
    assert small.size == expected
    whole = image.resize(expected, Image.Resampling.BOX)
    assert np.abs(np.asarray(small)[:, :, 0].astype(int) - np.asarray(whole)).max() <= 4


def test_a_smaller_picture_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (640, 320)), "JPEG", exif=exif)
    assert open_image(data, least_side=160).size == (160, 320)


def test_the_limit_is_above_the_pictures_of_phones_and_panoramas() -> None:
    assert max(12_000 * 9_000, 16_320 * 12_240, 20_480 * 5_120) < MAX_PIXELS


def test_a_panorama_of_100_megapixels_takes_little_memory(tmp_path: Path) -> None:
    Image.new("RGB", (20_480, 5_120), (200, 30, 60)).save(tmp_path / "a.jpg")
    code = f"""
        import resource
        from lexvla.images import open_image
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        image = open_image({str(tmp_path / "a.jpg")!r}, least_side=1024)
        assert image.size == (5_120, 1_280), image.size
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100_000  # KiB; all of it would be 307,200
