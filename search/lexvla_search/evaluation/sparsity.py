"""How well retrieval keeps up as vectors keep fewer words (LexVLA's sparsity study)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scipy import sparse

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import OptionalDependencyError
from lexvla.images import ImageSource
from lexvla_search.evaluation.batches import encode_in_batches, keep_heaviest
from lexvla_search.evaluation.crossmodal import paired_recall_any

__all__ = [
    "KEPT",
    "Side",
    "SparsityFigures",
    "SparsityPoint",
    "evaluate_sparsity",
    "plot_sparsity",
]

KS = (1, 5, 10)
KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
Side = Literal["both", "images", "texts"]
_MOST_WEIGHTS = 2**27  # in the vectors with all words: 1 GiB


@dataclass(frozen=True)
class SparsityPoint:
    """Retrieval with vectors cut to one size.

    Attributes:
        kept: The most words of each vector; ``None`` for the model's own rule.
        words_per_text: Mean number of active words of a text.
        words_per_image: Mean number of active words of an image.
        sparsity_ratio: Share of the vocabulary that is inactive, over the side that is cut.
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
    """Figures of one study.

    Attributes:
        vocabulary: How many words a vector can have.
        side: Which vectors were cut; the others follow the model's own rule.
        complete: Whether the last point keeps all words, not just those that fitted into memory.
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
        """Return plain values for JSON."""
        return asdict(self)


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

    Items are encoded by the model's own rule, and once more with all words, of which the heaviest
    are kept. For a large set, the vectors keep only as many words as fit into 1 GiB, and the study
    ends there; numbers beyond that or the vocabulary are left out. A model without a ``config``
    gives only the words that its rule keeps.

    Each image needs a text. `image_of` is the image number of each text; by default the i-th text
    has the i-th image. ``show_progress_bar=None`` shows the bar if stderr is a terminal.
    """
    pairs = range(len(texts)) if image_of is None else image_of
    if len(pairs) != len(texts) or not texts or {*pairs} != {*range(len(images))}:
        raise ValueError("each text must have one of the images, and each image a text")
    vocabulary = len(model.vocabulary)
    most = min(vocabulary, max(1, _MOST_WEIGHTS // (len(texts) + len(images))))

    def encode(encode: Any, items: Sequence[Any], **options: Any) -> sparse.csr_array:
        return encode_in_batches(encode, items, batch_size, show_progress_bar, **options).lexical

    own_texts, own_images = encode(model.encode_text, texts), encode(model.encode_image, images)
    loose = _with_all_words(model)
    options = {"max_active_dims": most} if loose is not None and most < vocabulary else {}
    whole = loose or model
    all_texts = None if side == "images" else encode(whole.encode_text, texts, **options)
    all_images = None if side == "texts" else encode(whole.encode_image, images, **options)

    def point(words: int | None) -> SparsityPoint:
        of_texts, of_images = own_texts, own_images
        if words is not None and all_texts is not None:
            of_texts = keep_heaviest(all_texts, words)
        if words is not None and all_images is not None:
            of_images = keep_heaviest(all_images, words)
        cut = [of_texts] * (side != "images") + [of_images] * (side != "texts")
        active = sum(vectors.nnz for vectors in cut) / sum(vectors.shape[0] for vectors in cut)
        found = paired_recall_any(Encoding(of_texts), Encoding(of_images), pairs, ks=KS)
        return SparsityPoint(
            kept=words,
            words_per_text=of_texts.nnz / len(texts),
            words_per_image=of_images.nnz / len(images),
            sparsity_ratio=1 - active / vocabulary,
            text_to_image=found.text_to_image,
            image_to_text=found.image_to_text,
        )

    return SparsityFigures(
        model=model.name,
        texts=len(texts),
        images=len(images),
        vocabulary=vocabulary,
        side=side,
        complete=most == vocabulary,
        points=tuple(point(words) for words in [*(k for k in kept if k < most), most]),
        own=point(None),
    )


def plot_sparsity(figures: SparsityFigures, path: str | Path) -> None:
    """Draw quality over active words, one panel for each direction, into a ``.png`` or ``.svg``."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionalDependencyError("matplotlib", "evaluation") from error
    # No pyplot: it needs a display and keeps state. The colours are Okabe and Ito's.
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
    with rc_context({"svg.hashsalt": "lexvla"}):  # same figures, same file
        figure.savefig(path, dpi=120, metadata={"Date": None} if is_svg else None)


def _mean_words(figures: SparsityFigures, point: SparsityPoint) -> float:
    return max((1 - point.sparsity_ratio) * figures.vocabulary, 1.0)


def _with_all_words(model: Encoder) -> Encoder | None:
    """Return a copy of a model that keeps all words of its vectors; ``None`` if it has no rule."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    loose: Any = copy(model)
    loose.config = copy(config)
    loose.config.sparsification, loose.config.threshold = "threshold", 0.0
    loose.config.max_active_dims = None
    made: Encoder = loose
    return made
