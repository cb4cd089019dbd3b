"""COCO-style instance annotations as masks of class numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lexvla.errors import InputError, OptionalDependencyError
from lexvla.images import open_image
from lexvla_search.evaluation.patchdis import BACKGROUND, Scene

__all__ = ["CocoScenes", "read_coco"]

_SLACK = 1.0  # pixels that a corner may lie outside its image: annotators round


@dataclass(frozen=True)
class CocoScenes:
    """Images with their masks, read anew on each iteration.

    Where instances overlap, the smaller one is on top; of two equal ones, the later. A crowd
    region (``iscrowd``) has no sharp outline: it is left out, so its pixels are background.
    Classes are numbered in the order of the file's categories.
    """

    class_names: tuple[str, ...]
    _images: tuple[dict[str, Any], ...]
    _annotations: dict[Any, list[dict[str, Any]]]  # by image id
    _numbers: dict[Any, int]  # class numbers by category id
    _folder: Path

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Scene]:
        """Yield each image and its (height, width) int64 mask, -1 for background.

        `InputError` if an image cannot be read or is not of the stated size, or a mask is bad.
        """
        for record in self._images:
            image = open_image(self._folder / record["file_name"])
            width, height = record["width"], record["height"]
            if image.size != (width, height):
                rule = f"has {image.width} x {image.height} pixels, the annotations say {width}"
                raise InputError(str(record["file_name"]), f"{rule} x {height}")
            instances = [
                (
                    _instance_mask(annotation, height, width),
                    self._numbers[annotation["category_id"]],
                )
                for annotation in self._annotations.get(record["id"], ())
            ]
            mask = np.full((height, width), BACKGROUND)
            for covered, number in sorted(instances, key=lambda one: -int(one[0].sum())):
                mask[covered] = number
            yield image, mask


def read_coco(annotations: str | Path, images: str | Path) -> CocoScenes:
    """Read and check a COCO instances file; images and masks are read later.

    The images' ``file_name`` is relative to the folder `images`.
    """
    _mask_tools()
    data = _load(Path(annotations))
    names = [_field(c, "name", str, f"category {c['id']}") for c in data["categories"]]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(repeated, "two categories have this name")
    for record in data["images"]:
        item = f"image {record['id']}"
        _field(record, "file_name", str, item)
        if min(_field(record, side, int, item) for side in ("width", "height")) < 1:
            raise InputError(item, "has no area")
    categories = {category["id"]: number for number, category in enumerate(data["categories"])}
    by_image: dict[Any, list[dict[str, Any]]] = {record["id"]: [] for record in data["images"]}
    for annotation in data["annotations"]:
        item = f"annotation {annotation['id']}"
        for key, known in (("image_id", by_image), ("category_id", categories)):
            value = annotation.get(key)
            if not isinstance(value, int | str) or value not in known:
                raise InputError(item, f"{key} {value!r} is not in the file")
        if not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(annotation)
    return CocoScenes(tuple(names), tuple(data["images"]), by_image, categories, Path(images))


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file") from error
    except OSError as error:
        raise InputError(str(path), f"the file cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        records = data.get(key) if isinstance(data, dict) else None
        if not isinstance(records, list):
            raise InputError(str(path), f"is no COCO file: it has no list of {key}")
        for place, record in enumerate(records):
            if not (isinstance(record, dict) and isinstance(record.get("id"), int | str)):
                raise InputError(f"{key}[{place}]", "must be an object with an id")
        if len({record["id"] for record in records}) != len(records):
            raise InputError(str(path), f"two of the {key} have the same id")
    return data


def _field(record: dict[str, Any], key: str, kind: type[Any], item: str) -> Any:
    value = record.get(key)
    if not isinstance(value, kind):
        raise InputError(item, f"{key} must be a{'n integer' if kind is int else ' string'}")
    return value


def _instance_mask(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    tools, item = _mask_tools(), f"annotation {annotation['id']}"
    shape = annotation.get("segmentation")
    if isinstance(shape, list):
        polygons = [_polygon(corners, height, width, item) for corners in shape]
        if not polygons:
            raise InputError(item, "has no polygon")
        code = tools.merge(tools.frPyObjects(polygons, height, width))
    elif isinstance(shape, dict):
        code = _run_lengths(shape, height, width, item)
    else:
        raise InputError(item, "segmentation must be a list of polygons, or a run-length code")
    mask: np.ndarray = tools.decode(code)
    return mask.astype(bool)


def _polygon(corners: Any, height: int, width: int, item: str) -> list[float]:
    is_flat = isinstance(corners, list) and all(type(c) in (int, float) for c in corners)
    if not is_flat or len(corners) < 6 or len(corners) % 2:
        raise InputError(item, "a polygon must be a list x, y, x, y, ... of at least 3 corners")
    for side, values in ((width, corners[::2]), (height, corners[1::2])):
        if not all(-_SLACK <= value <= side + _SLACK for value in values):  # NaN as well
            raise InputError(item, f"a corner lies outside of the image of {width} x {height}")
    return [float(corner) for corner in corners]


def _run_lengths(code: dict[str, Any], height: int, width: int, item: str) -> dict[str, Any]:
    if code.get("size") != [height, width]:
        rule = f"the run-length code has the size {code.get('size')}"
        raise InputError(item, f"{rule}, its image [{height}, {width}]")
    counts = code.get("counts")
    if isinstance(counts, str):
        counts = _uncompress(counts)
    if not (isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)):
        raise InputError(item, "the run-length code is damaged")
    # pycocotools leaves pixels that the runs do not cover uninitialised.
    if sum(counts) != height * width:
        pixels = f"{sum(counts)} pixels, the image has {height * width}"
        raise InputError(item, f"the run-length code has {pixels}")
    plain = {"size": [height, width], "counts": counts}
    packed: dict[str, Any] = _mask_tools().frPyObjects(plain, height, width)
    return packed


def _uncompress(text: str) -> list[int] | None:
    """Return the runs of COCO's compressed code, or None if it is cut short.

    Each character holds 5 bits of a number, low ones first; bit 5 says that more follow, and bit 4
    of the last is the sign. From the third run on, a number is the difference to the run before
    last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts


def _mask_tools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise OptionalDependencyError("pycocotools", "evaluation") from error
    return mask
