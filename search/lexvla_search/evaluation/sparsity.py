"""How well retrieval keeps up as vectors keep fewer words (LexVLA's sparsity study)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse
from tqdm import tqdm

from lexvla.encoding import Encoder
from lexvla.errors import OptionalDependencyError
from lexvla.images import ImageSource
from lexvla_search.evaluation.retrieval import ranks

__all__ = [
    "KEPT",
    "Side",
    "SparsityFigures",
    "SparsityPoint",
    "evaluate_sparsity",
    "keep_heaviest",
    "paired_recall",
    "plot_sparsity",
]

KS = (1, 5, 10)
KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
Side = Literal["both", "images", "texts"]
_MOST_WEIGHTS = 2**27  # that the vectors with all words may hold: 1 GiB
_BLOCK = 512  # images whose vectors are dense in memory at one time


@dataclass(frozen=True)
class SparsityPoint:
    """Retrieval with vectors cut to one size.

    Attributes:
        kept: At most so many words of each vector; ``None`` for the model's own rule.
        words_per_text: Mean number of active words of a text.
        words_per_image: Mean number of active words of an image.
        sparsity_ratio: Share of the vocabulary that is not active, over the side that is cut.
        text_to_image: R@k of finding a text's image.
        image_to_text: R@k of finding one of an image's texts.
    """

    kept: int | None
    words_per_text: float
    words_per_image: float
    sparsity_ratio: float
    text_to_image: dict[int, float]
    image_to_text: dict[int, float]


@dataclass(frozen=True)
class SparsityFigures:
    """What one study gives.

    Attributes:
        model: The model's name.
        texts: How many texts.
        images: How many images.
        vocabulary: How many words a vector can have.
        side: Which vectors were cut; the others are as the model's own rule leaves them.
        complete: Whether the last point keeps all words, or only those that memory held.
        points: By the number of words kept, ascending.
        own: The model's own rule on both sides.
    """

    model: str
    texts: int
    images: int
    vocabulary: int
    side: Side
    complete: bool
    points: tuple[SparsityPoint, ...]
    own: SparsityPoint

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def keep_heaviest(vectors: sparse.csr_array, kept: int) -> sparse.csr_array:
    """Keep the heaviest words of each vector; of equal ones, those of the lower columns.

    Args:
        vectors: (n, V) float32 CSR.
        kept: At most so many words of each row.

    Returns:
        (n, V) float32 CSR, weights as they were.
    """
    # By blocks, as sorting takes several times the memory of what it sorts.
    blocks = [_cut(vectors[at : at + _BLOCK], kept) for at in _starts(vectors.shape[0])]
    return sparse.csr_array(sparse.vstack(blocks, format="csr"))


def paired_recall(
    texts: sparse.csr_array, images: sparse.csr_array, image_of: Sequence[int]
) -> tuple[dict[int, float], dict[int, float]]:
    """Return R@1, R@5 and R@10 of text to image, and of image to one of its texts.

    Ties count against, and an image that shares no word with the text is not retrieved. The scores
    of all pairs are in memory, at 4 bytes each.

    Args:
        texts: (t, V) vectors.
        images: (i, V) vectors.
        image_of: The number of each text's image; every image has a text.
    """
    scores = _scores(texts, images)
    to_image = np.concatenate(
        [
            ranks(scores[at : at + _BLOCK], image_of[at : at + _BLOCK])
            for at in _starts(len(image_of))
        ]
    )
    # Of an image's texts the best one counts, and the others are not in its way.
    best = [-1] * images.shape[0]
    for text, image in enumerate(image_of):
        if best[image] < 0 or scores[text, image] > scores[best[image], image]:
            if best[image] >= 0:
                scores[best[image], image] = -np.inf
            best[image] = text
        else:
            scores[text, image] = -np.inf
    to_text = np.concatenate(
        [ranks(scores[:, at : at + _BLOCK].T, best[at : at + _BLOCK]) for at in _starts(len(best))]
    )
    return (
        {k: float(np.mean(to_image <= k)) for k in KS},
        {k: float(np.mean(to_text <= k)) for k in KS},
    )


def evaluate_sparsity(
    model: Encoder,
    images: Sequence[ImageSource],
    texts: Sequence[str],
    image_of: Sequence[int] | None = None,
    side: Side = "both",
    kept: Sequence[int] = KEPT,
    batch_size: int = 64,
    show_progress_bar: bool | None = False,
) -> SparsityFigures:
    """Measure retrieval with the heaviest words of each vector, for rising numbers of words.

    Items are encoded by the model's own rule, and once more with all words; weights are not brought
    to unit length again after the cut. While it runs, the model's configuration is changed. Of a
    large set, the vectors keep only so many words as 1 GiB holds, and the study ends there.

    Args:
        model: The encoder. One without a ``config`` gives no more words than its rule keeps.
        images: Paths or images.
        texts: At least one for each image.
        image_of: The number of each text's image; by default the i-th text has the i-th image.
        side: Cut the vectors of images, of texts, or of both.
        kept: Numbers of words to keep; those that the vocabulary or memory has not are left out.
        batch_size: Items in one pass.
        show_progress_bar: On stderr; ``None`` shows it if that is a terminal.

    Raises:
        InputError: An image cannot be read.
        ValueError: Texts and images do not pair up.
    """
    pairs = range(len(texts)) if image_of is None else image_of
    if len(pairs) != len(texts) or not texts or {*pairs} != {*range(len(images))}:
        raise ValueError("each text must have one of the images, and each image a text")
    name, vocabulary = model.name, len(model.vocabulary)  # the name follows from the configuration
    most = min(vocabulary, max(1, _MOST_WEIGHTS // (len(texts) + len(images))))
    off = None if show_progress_bar is None else not show_progress_bar
    own_texts = _encode(model.encode_text, texts, batch_size, off)
    own_images = _encode(model.encode_image, images, batch_size, off)
    with _all_words(model) as is_loose:
        options = {"max_active_dims": most} if is_loose and most < vocabulary else {}
        all_texts = all_images = None
        if side != "images":
            all_texts = _encode(model.encode_text, texts, batch_size, off, **options)
        if side != "texts":
            all_images = _encode(model.encode_image, images, batch_size, off, **options)

    def point(words: int | None) -> SparsityPoint:
        of_texts, of_images = own_texts, own_images
        if words is not None and all_texts is not None:
            of_texts = keep_heaviest(all_texts, words)
        if words is not None and all_images is not None:
            of_images = keep_heaviest(all_images, words)
        cut = [of_texts] * (side != "images") + [of_images] * (side != "texts")
        active = sum(vectors.nnz for vectors in cut) / sum(vectors.shape[0] for vectors in cut)
        to_image, to_text = paired_recall(of_texts, of_images, pairs)
        return SparsityPoint(
            kept=words,
            words_per_text=of_texts.nnz / len(texts),
            words_per_image=of_images.nnz / len(images),
            sparsity_ratio=1 - active / vocabulary,
            text_to_image=to_image,
            image_to_text=to_text,
        )

    return SparsityFigures(
        model=name,
        texts=len(texts),
        images=len(images),
        vocabulary=vocabulary,
        side=side,
        complete=most == vocabulary,
        points=tuple(point(words) for words in [*(k for k in kept if k < most), most]),
        own=point(None),
    )


def plot_sparsity(figures: SparsityFigures, path: str | Path) -> None:
    """Draw quality over active words, one panel for each direction, into a ``.png`` or ``.svg``.

    Raises:
        OptionalDependencyError: matplotlib is missing.
        OSError: The file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionalDependencyError("matplotlib", "evaluation") from error
    # Without pyplot there is no display and no state. The colours are Okabe and Ito's.
    styles = dict(zip(KS, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")), strict=True))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    words = [_mean_words(figures, point) for point in figures.points]
    own = _mean_words(figures, figures.own)
    for axes, name in zip(panels, ("text_to_image", "image_to_text"), strict=True):
        for k, (colour, marker) in styles.items():
            values = [100 * getattr(point, name)[k] for point in figures.points]
            axes.plot(words, values, color=colour, marker=marker, markersize=4, label=f"R@{k}")
            height = 100 * getattr(figures.own, name)[k]
            axes.plot([own], [height], marker="*", markersize=13, color=colour, mec="black")
        axes.axvline(own, color="0.6", linestyle=":", zorder=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_title(name.replace("_", " "))
        axes.set_xlabel("active words, mean")
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9")
    panels[0].set_ylabel("found among the first k, %")
    panels[0].plot([], [], "*", color="0.6", mec="black", markersize=13, label="the model's rule")
    panels[0].legend(loc="lower right")
    is_svg = Path(path).suffix.lower() == ".svg"
    with rc_context({"svg.hashsalt": "lexvla"}):  # the same figures give the same file
        figure.savefig(path, dpi=120, metadata={"Date": None} if is_svg else None)


def _mean_words(figures: SparsityFigures, point: SparsityPoint) -> float:
    """Return the mean over the vectors that the study cuts."""
    return max((1 - point.sparsity_ratio) * figures.vocabulary, 1.0)


@contextmanager
def _all_words(model: Any) -> Iterator[bool]:
    """Let a model keep all words of its vectors, and put its rule back; say whether it does."""
    config = getattr(model, "config", None)
    if config is None:
        yield False
        return
    before = config.sparsification, config.threshold
    config.sparsification, config.threshold = "threshold", 0.0
    try:
        yield True
    finally:
        config.sparsification, config.threshold = before


def _encode(
    encode: Any, items: Sequence[Any], size: int, off: bool | None, **options: Any
) -> sparse.csr_array:
    starts = tqdm(range(0, len(items), size), unit=" batches", disable=off)
    parts = [encode(list(items[at : at + size]), **options).lexical for at in starts]
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def _cut(vectors: sparse.csr_array, kept: int) -> sparse.csr_array:
    counts = np.diff(vectors.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((vectors.indices, -vectors.data, rows))
    place = np.arange(len(rows)) - np.repeat(vectors.indptr[:-1], counts)
    chosen = np.sort(order[place < kept])
    starts = np.concatenate([[0], np.minimum(counts, kept).cumsum()])
    parts = vectors.data[chosen], vectors.indices[chosen], starts
    return sparse.csr_array(parts, shape=vectors.shape)


def _scores(texts: sparse.csr_array, images: sparse.csr_array) -> np.ndarray:
    """Return (t, i) float32 scores, ``-inf`` where no word is shared.

    Sparse by dense: each sum runs over a text's words in order, so equal vectors tie to the bit.
    """
    scores = np.empty((texts.shape[0], images.shape[0]), dtype=np.float32)
    for at in _starts(images.shape[0]):
        scores[:, at : at + _BLOCK] = texts @ images[at : at + _BLOCK].toarray().T
    scores[scores == 0] = -np.inf
    return scores


def _starts(count: int) -> range:
    return range(0, count, _BLOCK)
