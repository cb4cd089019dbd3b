"""PatchDis (arXiv 2407.17827): does each patch of an image know what it shows?

A patch gets the class whose name is most similar, without training on masks. The patches of a class
are its predicted mask, and mIoU compares these masks with the true ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from PIL import Image
from tqdm import tqdm

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError

__all__ = [
    "BACKGROUND",
    "Names",
    "PatchDisFigures",
    "PatchDisScore",
    "PatchEncoder",
    "Scene",
    "choose_classes",
    "count_overlap",
    "evaluate_patchdis",
    "mean_iou",
    "patch_truth",
]

BACKGROUND = -1
Names = Literal["words", "text"]
Scene: TypeAlias = tuple[Image.Image, np.ndarray]
_DRAWS = 20  # of the random choice, for each patch


class PatchEncoder(Encoder, Protocol):
    """What PatchDis needs of a model besides `Encoder`."""

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of patches."""
        ...

    def encode_words(self, words: Sequence[str]) -> Encoding:
        """Return one row for each word."""
        ...

    def encode_patches(self, images: Sequence[Image.Image]) -> Encoding:
        """Return one row for each patch, image after image, row by row."""
        ...


@dataclass(frozen=True)
class PatchDisScore:
    """How well the patches were classified among one choice of candidates.

    Attributes:
        miou: Mean IoU over the classes that occur.
        accuracy: Share of the measured patches that got their class.
        undecided: Share that got no class: similar to none, or equally to two.
        chance_miou: The mean IoU of a random candidate for each patch.
        chance_accuracy: The accuracy of a random candidate.
    """

    miou: float
    accuracy: float
    undecided: float
    chance_miou: float
    chance_accuracy: float


@dataclass(frozen=True)
class PatchDisFigures:
    """Figures of one run.

    Attributes:
        names: How class names were encoded: ``words`` (rows of the codebook) or ``text`` (prompt).
        images: Images with a patch of a class.
        patches: Patches of a class; the others are background, and not measured.
        occurring: Classes that occur, over which the mean is taken.
        wordless: Class names without a word in the vocabulary; they are never chosen.
        present: The score if the candidates are the classes of the image at hand.
        all: The score if all classes are candidates.
    """

    model: str
    names: Names
    images: int
    patches: int
    classes: int
    occurring: int
    wordless: int
    present: PatchDisScore
    all: PatchDisScore

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def patch_truth(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Reduce a (height, width) mask to int64 class numbers on a (rows, columns) patch grid.

    A pixel belongs to the patch that its centre lies in. A patch takes the class of most of its
    pixels, background (-1) being one; a tie, or no pixel at all, makes it background.

    Example:
        >>> patch_truth(np.array([[0, 0, 1, 2], [0, 3, 1, 2]]), (1, 2))
        array([[ 0, -1]])
    """
    rows, columns = grid
    height, width = mask.shape
    down = (2 * np.arange(height) + 1) * rows // (2 * height)
    across = (2 * np.arange(width) + 1) * columns // (2 * width)
    patches = down[:, None] * columns + across
    labels, numbers = np.unique(mask, return_inverse=True)
    cells = patches.ravel() * len(labels) + numbers.ravel()
    counts = np.bincount(cells, minlength=rows * columns * len(labels))
    counts = counts.reshape(rows * columns, len(labels))
    most = counts.max(axis=1, keepdims=True)
    clear = ((counts == most).sum(axis=1) == 1) & (most[:, 0] > 0)
    truth = np.where(clear, labels[counts.argmax(axis=1)], BACKGROUND)
    return truth.reshape(grid).astype(np.int64)


def choose_classes(scores: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
    """Return the most similar class of each patch, by default from all: (patches,) int64.

    Similarities are (patches, classes), at least 0. A patch gets -1 if two candidates share the
    largest similarity or all are 0: it belongs to no class, which counts against the model.

    Example:
        >>> choose_classes(np.array([[0.1, 0.3], [0.2, 0.2], [0.0, 0.0]]))
        array([ 1, -1, -1])
    """
    chosen = np.arange(scores.shape[1]) if candidates is None else np.asarray(candidates)
    among = scores[:, chosen]
    if not len(chosen):
        return np.full(len(scores), BACKGROUND)
    best = among.max(axis=1, keepdims=True)
    clear = ((among == best).sum(axis=1) == 1) & (best[:, 0] > 0)
    return np.where(clear, chosen[among.argmax(axis=1)], BACKGROUND)


def count_overlap(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count each class's patches in the intersection, the prediction and the truth.

    Class numbers are (n,), -1 for none; patches whose truth is -1, background, are ignored.
    Returns (3, classes) int64, to be summed over images.
    """
    measured = truth != BACKGROUND
    predicted, truth = predicted[measured], truth[measured]
    kinds = (truth[predicted == truth], predicted[predicted != BACKGROUND], truth)
    return np.stack([np.bincount(kind, minlength=classes) for kind in kinds])


def mean_iou(counts: np.ndarray) -> float:
    """Return mean intersection over union over the classes that occur.

    `counts` is the sum over images of what `count_overlap` returns.
    """
    occurs = counts[2] > 0
    if not occurs.any():
        raise ValueError("no patch is of a class")
    shared, predicted, true = counts[:, occurs]
    return float(np.mean(shared / (predicted + true - shared)))


def evaluate_patchdis(
    model: PatchEncoder,
    scenes: Iterable[Scene],
    class_names: Sequence[str],
    names: Names = "words",
    batch_size: int = 16,
    seed: int = 0,
    show_progress_bar: bool | None = False,
) -> PatchDisFigures:
    """Classify every patch of every scene by the class names, and measure the masks.

    Scenes are read batch by batch; only counts are kept. A scene is an image and its mask: (height,
    width) class numbers at the size of the image, -1 for background. Names are encoded by their
    rows of the codebook (``words``, as the paper does), or by the language model in its prompt
    (``text``). The seed is for the random choice that gives chance. ``show_progress_bar=None``
    shows the bar if stderr is a terminal.
    """
    off = None if show_progress_bar is None else not show_progress_bar
    scenes = tqdm(scenes, unit=" images", disable=off)
    encode = model.encode_words if names == "words" else model.encode_text
    vectors = encode(list(class_names)).lexical
    present, every = _Tally(len(class_names), seed), _Tally(len(class_names), seed)
    images = patches = 0
    for batch, truths in _batches(scenes, len(class_names), model.patch_grid, batch_size):
        rows = model.encode_patches(batch).lexical
        scores = (rows @ vectors.T).toarray().reshape(len(batch), -1, len(class_names))
        for own, grid in zip(scores, truths, strict=True):
            truth = grid.ravel()
            measured = truth != BACKGROUND
            images, patches = images + 1, patches + int(measured.sum())
            present.add(own[measured], truth[measured], np.unique(truth[measured]))
            every.add(own[measured], truth[measured], np.arange(len(class_names)))
    if not patches:
        raise InputError("masks", "no patch is of a class")
    return PatchDisFigures(
        model=model.name,
        names=names,
        images=images,
        patches=patches,
        classes=len(class_names),
        occurring=int((every.counts[2] > 0).sum()),
        wordless=int((np.diff(vectors.indptr) == 0).sum()),
        present=present.score(),
        all=every.score(),
    )


class _Tally:
    def __init__(self, classes: int, seed: int) -> None:
        self.counts = np.zeros((3, classes), dtype=np.int64)
        self._chance = np.zeros((_DRAWS, 3, classes), dtype=np.int64)
        self._random = np.random.default_rng(seed)

    def add(self, scores: np.ndarray, truth: np.ndarray, candidates: np.ndarray) -> None:
        classes = scores.shape[1]
        self.counts += count_overlap(choose_classes(scores, candidates), truth, classes)
        for draw in self._chance:
            draw += count_overlap(self._random.choice(candidates, len(truth)), truth, classes)

    def score(self) -> PatchDisScore:
        patches = int(self.counts[2].sum())
        return PatchDisScore(
            miou=mean_iou(self.counts),
            accuracy=float(self.counts[0].sum() / patches),
            undecided=1 - float(self.counts[1].sum() / patches),
            chance_miou=float(np.mean([mean_iou(draw) for draw in self._chance])),
            chance_accuracy=float(self._chance[:, 0].sum() / patches / _DRAWS),
        )


def _batches(
    scenes: Iterable[Scene], classes: int, grid: tuple[int, int], size: int
) -> Iterator[tuple[list[Image.Image], list[np.ndarray]]]:
    """Yield images and their truth on the grid, without images that have no patch of a class."""
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")
    measured = (pair for pair in _on_grid(scenes, classes, grid) if (pair[1] != BACKGROUND).any())
    while batch := list(islice(measured, size)):
        yield [image for image, _ in batch], [truth for _, truth in batch]


def _on_grid(scenes: Iterable[Scene], classes: int, grid: tuple[int, int]) -> Iterator[Scene]:
    for image, mask in scenes:
        if mask.shape != (image.height, image.width):
            size = f"{image.height} x {image.width}"
            raise ValueError(f"a mask of shape {mask.shape} for an image of {size}")
        if mask.size and not (mask.min() >= BACKGROUND and mask.max() < classes):
            raise ValueError(f"a mask with class numbers outside of -1 to {classes - 1}")
        yield image, patch_truth(mask, grid)
