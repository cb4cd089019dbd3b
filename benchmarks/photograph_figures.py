"""Figures of a model on photographs: things cut out from their background, with short captions.

The things are stamps of the Debian package ``tuxpaint-stamps-default``, on white and in scenery of
``plasma-workspace-wallpapers``. Only stamps whose path has an even CRC-32 are read, about half: the
rest are kept for an independent check.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla_search.evaluation.batches import encode_in_batches
from lexvla_search.evaluation.retrieval import Scores, ranks, within

__all__ = [
    "KS",
    "SCENERY",
    "Photograph",
    "PhotographFigures",
    "Picture",
    "PictureFigures",
    "class_words",
    "evaluate_photographs",
    "in_scenery",
    "names_class",
    "on_white",
    "read_photographs",
    "read_scenery",
]

KS = (1, 5, 10)
NO_PHOTOGRAPHS = frozenset({"symbols", "cartoon", "flags", "roadsigns"})
MAX_WORDS = 4
# The nature photographs; the other wallpapers are drawings, renders and close-ups.
SCENERY = (
    "BytheWater",
    "ColdRipple",
    "DarkestHour",
    "EveningGlow",
    "FallenLeaf",
    "Kite",
    "OneStandsOut",
    "Path",
    "summer_1am",
)
SCENE_SIDE = 512
FREQUENT = 10
_SCENE_FILE = "contents/images/2560x1600.jpg"
_ARTICLES = frozenset({"a", "an", "the"})
_BATCH = 16


@dataclass(frozen=True)
class Photograph:
    """One thing, cut out, as a PNG file.

    Its name is the path below the folder of stamps, with forward slashes. Its caption is the first
    line of its text, without a final full stop or exclamation mark.
    """

    name: str
    caption: str
    path: Path

    @property
    def cutout(self) -> Image.Image:
        """Return the thing with its alpha channel."""
        with Image.open(self.path) as image:
            return image.convert("RGBA")


@dataclass(frozen=True)
class Picture:
    """A square RGB picture, and how much of each pixel is the thing: 0 to 255, at the same size."""

    image: Image.Image
    alpha: Image.Image


@dataclass(frozen=True)
class PictureFigures:
    """Figures of one kind of picture. Shares are from 0 to 1.

    Attributes:
        recall: R@k of caption to image, by the legs that are summed: ``words``; ``words and
            dense`` where the model has dense vectors; ``words, codes and dense`` where it has both.
        class_recall: The same of the captions that name a class, still among all images; ``None``
            if no caption does.
        words_per_image: Mean number of active words in an image's vector.
        pointing: Share of images whose strongest word was read from a patch that the thing covers
            by more than half. An image without words or without such a patch counts as a miss.
            ``None`` if the model gives no patches.
        chance_pointing: Mean share of patches on the thing: what a random patch scores.
    """

    recall: dict[str, dict[int, float]]
    class_recall: dict[str, dict[int, float]] | None
    words_per_image: float
    pointing: float | None
    chance_pointing: float | None


@dataclass(frozen=True)
class PhotographFigures:
    """Figures of one run. Ties count against, also between things of the same caption.

    Attributes:
        class_items: How many captions name a class.
        chance_recall: R@k of a random order.
        words_per_text: Mean number of active words in a caption's vector.
        frequent_words: The ten words that most images on white bear, each with the share of images;
            ties go by vocabulary order.
    """

    model: str
    items: int
    class_items: int
    chance_recall: dict[int, float]
    words_per_text: float
    white: PictureFigures
    scenery: PictureFigures
    frequent_words: list[tuple[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def read_photographs(stamps: Path) -> list[Photograph]:
    """Find the photographs of things with short captions, sorted by name.

    A caption has one to four words besides a leading article. The folders symbols, cartoon, flags
    and roadsigns are left out at any depth; a few drawings elsewhere stay. Paths with an odd CRC-32
    are left out.
    """
    found = []
    for path in stamps.rglob("*.png"):
        relative = path.relative_to(stamps)
        name = relative.as_posix()
        text = path.with_suffix(".txt")
        if zlib.crc32(name.encode()) % 2 or not text.is_file():
            continue
        if NO_PHOTOGRAPHS.isdisjoint(relative.parts[:-1]):
            caption = _caption(text.read_text(encoding="utf-8"))
            if 1 <= _count_words(caption) <= MAX_WORDS:
                found.append(Photograph(name, caption, path))
    if not found:
        raise InputError(str(stamps), "holds no stamps of photographs")
    return sorted(found, key=lambda item: item.name)


def read_scenery(wallpapers: Path) -> list[Image.Image]:
    """Return the middle square of each photograph of scenery, 512 pixels wide."""
    scenes = []
    for name in SCENERY:
        path = wallpapers / name / _SCENE_FILE
        if not path.is_file():
            raise InputError(str(wallpapers), f"lacks {name}/{_SCENE_FILE}")
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            middle = image.convert("RGB").crop((left, top, left + side, top + side))
        scenes.append(middle.resize((SCENE_SIDE, SCENE_SIDE), Image.Resampling.BICUBIC))
    return scenes


def on_white(cutout: Image.Image) -> Picture:
    """Centre a thing on a white square as wide as its longer side."""
    side = max(cutout.size)
    place = (side - cutout.width) // 2, (side - cutout.height) // 2
    return _lay(cutout, Image.new("RGB", (side, side), "white"), place)


def in_scenery(cutout: Image.Image, scenes: Sequence[Image.Image], name: str) -> Picture:
    """Place a thing on a square scene, its longer side half the scene's.

    The name's CRC-32 chooses the scene and the place, so that a name always gives the same picture.
    """
    number = zlib.crc32(name.encode())
    scene = scenes[number // 2 % len(scenes)]  # the lowest bit is 0 in all names that are read
    scale = scene.width / 2 / max(cutout.size)
    width, height = (max(1, round(side * scale)) for side in cutout.size)
    small = cutout.resize((width, height), Image.Resampling.BICUBIC)
    left = (scene.width - width) * (number >> 8 & 255) // 255
    top = (scene.height - height) * (number >> 16 & 255) // 255
    return _lay(small, scene, (left, top))


def class_words(lemmas: Iterable[str]) -> frozenset[str]:
    """Return the last word of each class name, in lower case.

    The names of a class are separated by commas, as in WordNet's synsets.

    Example:
        >>> sorted(class_words(["tiger cat", "acorn squash, gourd"]))
        ['cat', 'gourd', 'squash']
    """
    names = (name for names in lemmas for name in names.split(","))
    return frozenset(words[-1] for words in map(_words, names) if words)


def names_class(caption: str, words: frozenset[str]) -> bool:
    """Return whether the last word of a caption, or its singular, is the last word of a class.

    Example:
        >>> names_class("A pair of cherries", frozenset({"cherry"}))
        True
    """
    found = _words(caption)
    return bool(found) and not words.isdisjoint(_singulars(found[-1]))


def evaluate_photographs(
    model: Encoder,
    items: Sequence[Photograph],
    scenes: Sequence[Image.Image],
    words: frozenset[str],
) -> PhotographFigures:
    """Find each thing by its caption, on white and in scenery, and count the words of the images.

    `words` are the last words of class names; see `class_words`.
    """
    if not items or not scenes:
        raise ValueError("there must be items and scenes")
    texts = [item.caption for item in items]
    captions = encode_in_batches(model.encode_text, texts, _BATCH)
    near_class = np.array([names_class(text, words) for text in texts])
    white, where = _encode(model, (on_white(item.cutout) for item in items))
    there, where_there = _encode(
        model, (in_scenery(item.cutout, scenes, item.name) for item in items)
    )
    return PhotographFigures(
        model=model.name,
        items=len(items),
        class_items=int(near_class.sum()),
        chance_recall={k: min(1.0, k / len(items)) for k in KS},
        words_per_text=captions.lexical.nnz / len(items),
        white=_measure(captions, white, where, near_class),
        scenery=_measure(captions, there, where_there, near_class),
        frequent_words=_frequent_words(model, white),
    )


def _caption(text: str) -> str:
    return text.strip().partition("\n")[0].strip().rstrip(".!")


def _count_words(caption: str) -> int:
    words = caption.lower().split()
    return len(words) - len(_ARTICLES.intersection(words[:1]))


def _words(text: str) -> list[str]:
    found = re.findall(r"[\w'-]+", text.lower().replace("\u2019", "'"))
    return [word for word in (word.strip("'-") for word in found) if word]


def _singulars(word: str) -> set[str]:
    endings = {"s": "", "es": "", "ies": "y"}
    return {word} | {
        word.removesuffix(plural) + singular
        for plural, singular in endings.items()
        if word.endswith(plural)
    }


def _lay(cutout: Image.Image, ground: Image.Image, place: tuple[int, int]) -> Picture:
    image, alpha = ground.copy(), Image.new("L", ground.size)
    mask = cutout.getchannel("A")
    image.paste(cutout.convert("RGB"), place, mask)
    alpha.paste(mask, place)
    return Picture(image, alpha)


def _encode(model: Encoder, pictures: Iterator[Picture]) -> tuple[Encoding, np.ndarray | None]:
    """Encode pictures; also return which of their patches are on the thing: (pictures, patches)."""
    grid = getattr(model, "patch_grid", None)
    parts, where = [], []
    while batch := list(islice(pictures, _BATCH)):
        parts.append(model.encode_image([picture.image for picture in batch]))
        if grid is not None:
            where += [_patches_on(picture.alpha, grid) for picture in batch]
    return Encoding.concat(parts), np.array(where) if where else None


def _patches_on(alpha: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """Return which patches, row by row, are on the thing: their mean alpha is over a half."""
    rows, columns = grid
    means = alpha.convert("F").resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(means).ravel() > 255 / 2


def _measure(
    captions: Encoding, images: Encoding, where: np.ndarray | None, near_class: np.ndarray
) -> PictureFigures:
    own = range(len(captions))
    places = {legs: ranks(scores, own) for legs, scores in _scores(captions, images).items()}
    pointing = chance = None
    if where is not None and images.patches is not None:
        pointing, chance = _pointing(images, images.patches, where), float(where.mean())
    return PictureFigures(
        recall={legs: within(of, KS) for legs, of in places.items()},
        class_recall={legs: within(of[near_class], KS) for legs, of in places.items()}
        if near_class.any()
        else None,
        words_per_image=images.lexical.nnz / len(images),
        pointing=pointing,
        chance_pointing=chance,
    )


def _scores(captions: Encoding, images: Encoding) -> dict[str, Scores]:
    by_words = sparse.csr_array(captions.lexical @ images.lexical.T)
    scores: dict[str, Scores] = {"words": by_words}
    if captions.dense is not None and images.dense is not None:
        both = by_words.toarray() + captions.dense @ images.dense.T
        scores["words and dense"] = both
        if captions.codes is not None and images.codes is not None:
            by_codes = sparse.csr_array(captions.codes @ images.codes.T)
            scores["words, codes and dense"] = both + by_codes.toarray()
    return scores


def _pointing(images: Encoding, patches: np.ndarray, where: np.ndarray) -> float:
    starts, weights = images.lexical.indptr, images.lexical.data
    hits = 0
    for row, on_thing in enumerate(where):
        if starts[row] < starts[row + 1]:
            strongest = starts[row] + weights[starts[row] : starts[row + 1]].argmax()
            hits += int(on_thing[patches[strongest]])
    return hits / len(images)


def _frequent_words(model: Encoder, images: Encoding) -> list[tuple[str, float]]:
    bearers = np.bincount(images.lexical.indices, minlength=images.lexical.shape[1])
    most = np.argsort(-bearers, kind="stable")[:FREQUENT]
    return [
        (model.vocabulary.word(int(column)), float(bearers[column] / len(images)))
        for column in most
        if bearers[column]
    ]
