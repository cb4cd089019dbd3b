"""Open images from files, bytes, arrays and PIL images, safely and always in the same form."""

from __future__ import annotations

import base64
import errno
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageFile

from lexvla.errors import InputError
from lexvla.image_files import check_size, decode_file, open_header
from lexvla.image_formats import FORMATS, MAX_PIXELS
from lexvla.rgb import DECODE_ERRORS, Warn, orientation_of, to_rgb, turn

__all__ = ["ENOUGH_SIDE", "ImageSource", "image_size", "name_of", "open_image", "resize"]


class Tensor(Protocol):
    """What `open_image` needs of a torch tensor, without importing torch."""

    def detach(self) -> Tensor:
        """Return it without gradients."""
        ...

    def cpu(self) -> Tensor:
        """Return it in main memory."""
        ...

    def is_floating_point(self) -> bool:
        """Tell whether its values are floats."""
        ...

    def float(self) -> Tensor:
        """Return it in 32-bit floats."""
        ...

    def numpy(self) -> np.ndarray:
        """Return its values as an array."""
        ...


ImageSource = str | Path | bytes | io.BytesIO | Image.Image | np.ndarray | Tensor

_log = logging.getLogger(__name__)

ENOUGH_SIDE: Final = 640  # of a picture that a model reads: more than any of them uses


def open_image(
    source: ImageSource,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    *,
    least_side: int | None = None,
    warn: Warn | None = None,
) -> Image.Image:
    """Return an image in mode RGB, upright, with transparency laid over white.

    Of an animation, or a file of several pages, the first is read. 16-bit grey is scaled to 8 bits,
    as are floats from 0 to 1. The size is checked in the header, before any pixel is decoded.

    Args:
        source: A path, a ``data:`` URL, the bytes of a file, also in a BytesIO, a PIL image (left
            as it is), or a uint8 array of shape (height, width), (height, width, 1),
            (height, width, 3) or (height, width, 4). A torch tensor may also have its channels
            first, and floats from 0 to 1.
        name: Name of the item in errors; by default that of `name_of`.
        max_pixels: Largest width times height.
        least_side: A file's picture may come smaller, by a whole factor, if no side gets shorter
            than this. A JPEG then takes little memory, however large it is.
        warn: Gets a phrase for whatever of a file is lost; by default it is logged.

    Raises:
        InputError: The source is missing, empty, damaged, too large, of an unknown format, or has
            no reading as colour.
    """
    name = name or name_of(source)

    def log(lost: str) -> None:
        _log.warning("%r: %s", name, lost)

    said = warn or log
    if isinstance(source, Image.Image):
        return _from_image(source, name, max_pixels, said)
    if isinstance(source, np.ndarray):
        return _from_array(source, name, max_pixels, said)
    if isinstance(source, bytes):
        return decode_file(io.BytesIO(source), name, max_pixels, least_side, said)
    if isinstance(source, io.BytesIO):
        return decode_file(io.BytesIO(source.getbuffer()), name, max_pixels, least_side, said)
    if _is_data_url(source):
        content = io.BytesIO(_decode_url(str(source), name))
        return decode_file(content, name, max_pixels, least_side, said)
    if isinstance(source, str | Path):
        with _opened(Path(source), name) as file:
            return decode_file(file, name, max_pixels, least_side, said)
    if hasattr(source, "detach"):
        return _from_array(_of_tensor(source, name), name, max_pixels, said)
    kind = type(source).__name__
    raise InputError(name, f"an image cannot be read from a value of type {kind}")


def image_size(source: bytes | Path, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the width and height in a file's header, without decoding it.

    `InputError` if `open_image` would refuse the file for what is in its header.
    """
    with (
        nullcontext(io.BytesIO(source))
        if isinstance(source, bytes)
        else _opened(source, name) as file
    ):
        size = open_header(file, name, lambda lost: None)[0].size
    check_size(size, name, max_pixels)
    return size


def name_of(source: ImageSource) -> str:
    """Return the path of an image, or the kind of source in angle brackets."""
    if _is_data_url(source):
        return "<data URL>"
    if isinstance(source, str | Path):
        return str(source)
    kinds = {Image.Image: "image", np.ndarray: "array", bytes: "bytes"}
    known = (name for kind, name in kinds.items() if isinstance(source, kind))
    return f"<{next(known, type(source).__name__)}>"


def resize(image: Image.Image, side: int) -> np.ndarray:
    """Resize an RGB image to a square and return (side, side, 3) uint8."""
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0))


def _is_data_url(source: object) -> bool:
    return isinstance(source, str) and source[:5].lower() == "data:"


def _decode_url(url: str, name: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise InputError(name, "a data URL must hold base64, as in data:image/png;base64,...")
    try:
        return base64.b64decode(unquote(data), validate=True)
    except ValueError as error:
        raise InputError(name, f"is not valid base64 ({error})") from error


def _of_tensor(tensor: Tensor, name: str) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():  # numpy has no bfloat16
        tensor = tensor.float()
    array = np.asarray(tensor.numpy())
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if not np.issubdtype(array.dtype, np.floating):
        return array
    if not (array.min(initial=0) >= 0 and array.max(initial=0) <= 1):  # NaN fails too
        raise InputError(name, "floats of an image tensor must be from 0 to 1")
    return np.rint(array * 255).astype(np.uint8)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        if path.is_dir():
            raise InputError(name, "is a directory, not an image file")
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise InputError(name, "is not a regular file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(name, "no such file") from error
    except ValueError as error:  # a null byte in the path
        raise InputError(name, f"is not a valid path ({error})") from error
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "unknown reason")
        raise InputError(name, f"the file cannot be read ({reason})") from error


def _from_image(image: Image.Image, name: str, max_pixels: int, warn: Warn) -> Image.Image:
    check_size(image.size, name, max_pixels)
    # A file that PIL opened is not decoded yet, and may be of a format that we do not read.
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*FORMATS, "MPO"):
        raise InputError(name, f"{image.format} is not a known format ({', '.join(FORMATS)})")
    try:
        image.load()
    except DECODE_ERRORS as error:
        raise InputError(name, f"the image cannot be decoded ({error})") from error
    upright = turn(to_rgb(image, name, warn), orientation_of(image))
    return upright.copy() if upright is image else upright


def _from_array(array: np.ndarray, name: str, max_pixels: int, warn: Warn) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(name, f"an image array must be uint8, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        shape = "x".join(map(str, array.shape))
        rule = f"an image array must be height x width, with 1, 3 or 4 channels, not {shape}"
        raise InputError(name, rule)
    check_size((array.shape[1], array.shape[0]), name, max_pixels)
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)), name, warn)
