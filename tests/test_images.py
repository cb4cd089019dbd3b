from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_bytes import encoded, noise, png, tiff
from lexvla.errors import InputError
from lexvla.images import open_image

# What PIL says of damaged metadata, which is damaged on purpose here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
    pytest.mark.filterwarnings("ignore:Truncated File Read"),
]

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
BLACK = (0, 0, 0)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def corners(size: int = 32) -> Image.Image:
    """Blocks that tell every orientation apart, large enough for JPEG's 8x8 blocks."""
    image = Image.new("RGB", (2 * size, size), WHITE)
    image.paste(RED, (0, 0, size // 2, size // 2))
    image.paste(GREEN, (2 * size - size // 2, 0, 2 * size, size // 2))
    image.paste(BLUE, (0, size // 2, size // 2, size))
    return image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, kind: str) -> None:
    image = noise()
    path = tmp_path / f"image.{kind.lower()}"
    image.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    for source in (path, str(path), path.read_bytes(), image, np.asarray(image)):
        np.testing.assert_array_equal(pixels(open_image(source)), np.asarray(image))


def test_jpeg_is_as_pil_decodes_it(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    noise().save(path, quality=90)
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels(open_image(path)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = corners()
    # What a camera stores: the pixels turned so that the tag's transposition makes them upright.
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    path = tmp_path / f"turned.{kind.lower()}"
    stored.save(path, kind, exif=exif, **options.get(kind, {}))
    with Image.open(path) as lazy:
        again = open_image(lazy)
    for result in (open_image(path), again):
        difference = np.abs(pixels(result).astype(int) - np.asarray(upright).astype(int))
        assert result.size == upright.size
        assert difference.max() <= (2 if kind == "JPEG" else 0)


def test_damaged_exif_leaves_the_pixels() -> None:
    data = encoded(noise(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(open_image(data)), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_composited_over_white(kind: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (255, 0, 0, alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    result = pixels(open_image(encoded(image, kind, **options)))
    assert result[0].tolist() == [list(RED), [255, 127, 127], list(WHITE)]
    assert pixels(open_image(np.asarray(image)))[0].tolist() == result[0].tolist()


def test_grey_with_alpha_is_composited_over_white() -> None:
    image = Image.new("LA", (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (0, alpha))
    result = pixels(open_image(encoded(image, "PNG")))
    assert result[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(kind: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        image.putpixel((x, 0), x)
    result = pixels(open_image(encoded(image, kind, transparency=1)))
    assert result[0].tolist() == [list(RED), list(WHITE), list(BLUE)]
    assert pixels(open_image(encoded(image, kind)))[0].tolist() == [
        list(RED),
        list(GREEN),
        list(BLUE),
    ]


def test_palette_with_alpha_for_each_entry() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*BLACK, *BLACK, *BLACK])
    for x in range(3):
        image.putpixel((x, 0), x)
    result = pixels(open_image(encoded(image, "PNG", transparency=bytes([255, 128, 0]))))
    assert result[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


def test_colour_key_of_rgb_and_grey_png_is_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    result = pixels(open_image(encoded(image, "PNG", transparency=GREEN)))
    assert result[0].tolist() == [list(RED), list(WHITE)]
    grey = png((2, 1, 8, 0), b"\0\x20\x40", (b"tRNS", b"\0\x20"))
    assert pixels(open_image(grey))[0].tolist() == [[255] * 3, [64] * 3]


def test_16_bit_colour_key_is_white() -> None:
    grey = png((2, 1, 16, 0), b"\0\x12\x34\x12\x35", (b"tRNS", b"\x12\x34"))
    assert pixels(open_image(grey))[0].tolist() == [[255] * 3, [18] * 3]


def test_colour_key_has_the_depth_of_the_pixels() -> None:
    grey = png((4, 1, 2, 0), b"\0\x1b", (b"tRNS", b"\0\1"))
    assert pixels(open_image(grey))[0].tolist() == [[0] * 3, [255] * 3, [170] * 3, [255] * 3]
    grey = png((2, 1, 4, 0), b"\0\x1e", (b"tRNS", b"\0\1"))
    assert pixels(open_image(grey))[0].tolist() == [[255] * 3, [238] * 3]
    colours = b"\0" + b"\x12\x34" * 3 + b"\x34\x34" * 3
    colour = png((2, 1, 16, 2), colours, (b"tRNS", b"\x12\x34" * 3))
    assert pixels(open_image(colour))[0].tolist() == [[255] * 3, [52] * 3]


SIXTEEN = np.array([[0, 128, 129, 256, 257, 32768, 65278, 65535]], np.uint16)
EIGHT = np.array([0, 0, 1, 1, 1, 128, 254, 255])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    result = pixels(open_image(encoded(Image.fromarray(SIXTEEN), kind)))
    np.testing.assert_array_equal(result[0], np.stack([EIGHT] * 3, -1))


def test_16_bit_grey_in_other_containers_is_scaled() -> None:
    for image in (
        Image.fromarray(SIXTEEN),
        Image.fromarray(SIXTEEN.astype(np.int32)),
        Image.frombytes("I;16B", (8, 1), SIXTEEN.astype(">u2").tobytes()),
    ):
        np.testing.assert_array_equal(pixels(open_image(image))[0, :, 0], EIGHT)


def test_big_endian_tiff_is_scaled() -> None:
    image = Image.frombytes("I;16B", (8, 1), SIXTEEN.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(open_image(encoded(image, "TIFF")))[0, :, 0], EIGHT)


@pytest.mark.parametrize(
    ("samples", "expected", "lost"),
    [
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255], []),
        (np.array([-1, 0, 3], np.float32), [0, 64, 255], ["-1 is shown black, and 3 white"]),
        (np.array([7, 7, 7], np.float32), [0, 0, 0], ["7 is shown black, and 7 white"]),
        (np.array([0, np.nan, 1], np.float32), [0, 0, 255], ["not finite numbers"]),
        (np.array([0, 70_000, 140_000], np.int32), [0, 128, 255], ["and 140000 white"]),
        (np.array([-5, 0, 5], np.int16), [0, 128, 255], ["-5 is shown black"]),
        (np.array([0, 3 << 30, 3 << 30], np.uint32), [0, 255, 255], ["3.22123e+09 white"]),
        (np.array([0, 257, 65_535], np.uint32), [0, 1, 255], []),
    ],
)
def test_numbers_without_a_stated_range_are_stretched_with_a_warning(
    samples: np.ndarray, expected: list[int], lost: list[str]
) -> None:
    told: list[str] = []
    image = open_image(tiff(samples[None, :, None], photometric=1), warn=told.append)
    assert pixels(image)[0, :, 0].tolist() == expected
    assert len(told) == len(lost)
    assert all(part in each for part, each in zip(lost, told, strict=True))


def test_what_is_lost_is_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    open_image(tiff(np.full((1, 1, 1), 9, np.float32), photometric=1), name="scan")
    assert "'scan': its values have no stated range" in caplog.text


def test_floats_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="no finite number"):
        open_image(tiff(np.full((1, 1, 1), np.inf, np.float32), photometric=1))


COLOURS = np.array([[[255, 0, 100]]])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("samples", "photometric", "planar"),
    [
        (COLOURS.astype(np.uint8), 2, False),
        (COLOURS.astype(np.uint8), 2, True),
        ((COLOURS * 257).astype(np.uint16), 2, False),
        (np.array([[[0, 255, 155, 0]]], np.uint8), 5, False),
        (np.array([[[0, 255, 155, 0]]], np.uint8), 5, True),
    ],
)
def test_tiff_modes(samples: np.ndarray, photometric: int, planar: bool, order: str) -> None:
    image = open_image(tiff(samples, photometric, planar, order))
    assert pixels(image).tolist() == COLOURS.tolist()


def test_lab_becomes_rgb() -> None:
    grey = tiff(np.array([[[128, 0, 0]]], np.uint8), photometric=8)
    assert np.ptp(pixels(open_image(grey))) <= 1
    assert abs(int(pixels(open_image(grey))[0, 0, 0]) - 119) <= 2  # L* of 50


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit_images(kind: str) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(open_image(encoded(image, kind)))[0].tolist() == [list(BLACK), list(WHITE)]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    options = {"quality": 100} if kind == "JPEG" else {}
    result = pixels(open_image(encoded(image, kind, **options)))
    assert np.abs(result.astype(int) - RED).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels(open_image(data)).reshape(-1, 3).tolist() == [list(RED)] * 16


def test_a_jpeg_with_more_pictures_gives_the_first() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
        results = [open_image(image), open_image(data)]
    for result in results:
        assert np.abs(pixels(result).astype(int) - RED).max() <= 2


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[7]], np.uint8), [7, 7, 7]),
        (np.array([[[7]]], np.uint8), [7, 7, 7]),
        (np.array([[[1, 2, 3]]], np.uint8), [1, 2, 3]),
        (np.array([[[1, 2, 3, 0]]], np.uint8), [255, 255, 255]),
    ],
)
def test_array_shapes(array: np.ndarray, expected: list[int]) -> None:
    assert pixels(open_image(array)).tolist() == [[expected]]


def test_strided_array() -> None:
    array = np.asarray(noise())
    np.testing.assert_array_equal(pixels(open_image(array[::-1, ::2])), array[::-1, ::2])


def test_the_callers_image_stays_as_it_is() -> None:
    image = noise("RGB")
    result = open_image(image)
    assert result is not image
    result.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(noise("RGB")))
    grey = noise("L")
    open_image(grey)
    assert grey.mode == "L"
