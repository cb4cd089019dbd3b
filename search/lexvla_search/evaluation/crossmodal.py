"""Recall between captions and images, between images of a class, and zero-shot classification.

All from the full matrix of scores. Ties count against: the right item ranks behind all wrong ones
of its score. Items that share no word with the query are not found. A leg that needs dense vectors
raises `UnsupportedError` for encodings without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError
from lexvla_search.evaluation.retrieval import ranks, within

__all__ = [
    "ClassFigures",
    "MatchedLeg",
    "PairFigures",
    "class_recall",
    "paired_recall_any",
    "scores_of",
    "zero_shot",
]

MatchedLeg = Literal["lexical", "dense", "both"]
_BLOCK = 256  # rows of scores in memory at a time


@dataclass(frozen=True)
class PairFigures:
    """Recall between captions and images.

    Attributes:
        text_to_image: R@k of finding a caption's image.
        image_to_text: R@k of finding any of an image's captions.
        rsum: The sum of all of them, in percent.
    """

    text_to_image: dict[int, float]
    image_to_text: dict[int, float]
    rsum: float


@dataclass(frozen=True)
class ClassFigures:
    """Zero-shot classification.

    Attributes:
        accuracy: Share of images whose class is among the first k, by k.
        per_class: The mean over the classes for k = 1.
    """

    accuracy: dict[int, float]
    per_class: float


def scores_of(queries: Encoding, items: Encoding, leg: MatchedLeg) -> np.ndarray:
    """Return (queries, items) float32 dot products; ``-inf`` where no word is shared.

    ``both`` adds up words and dense vectors; then nothing is ``-inf``.
    """
    scores = np.zeros((len(queries), len(items)), np.float32)
    if leg != "dense":
        # Sparse by dense: each sum runs over a query's words in order, so equal items tie.
        for at in range(0, len(items), _BLOCK):
            part = items.lexical[at : at + _BLOCK].toarray().T
            scores[:, at : at + _BLOCK] = queries.lexical @ part
    if leg == "lexical":
        scores[scores == 0] = -np.inf
        return scores
    if queries.dense is None or items.dense is None:
        raise UnsupportedError("the model gives no dense vectors")
    scores += queries.dense @ items.dense.T
    return scores


def paired_recall_any(
    texts: Encoding,
    images: Encoding,
    image_of: Sequence[int],
    leg: MatchedLeg = "lexical",
    ks: Sequence[int] = (1, 5, 10),
) -> PairFigures:
    """Return recall in both directions; for an image, its best caption counts.

    `image_of` is the image number of each caption. Every image needs a caption.
    """
    owner = np.asarray(image_of, dtype=int)
    if len(owner) != len(texts) or {*owner.tolist()} != {*range(len(images))}:
        raise ValueError("each caption must have one of the images, and each image a caption")
    text_places = np.empty(len(texts))
    best = np.full(len(images), -np.inf, np.float32)  # of each image's own captions
    blocks = [slice(at, at + _BLOCK) for at in range(0, len(texts), _BLOCK)]
    for block in blocks:
        scores = scores_of(texts[block], images, leg)
        text_places[block] = ranks(scores, owner[block])
        np.maximum.at(best, owner[block], scores[np.arange(len(scores)), owner[block]])
    before = np.zeros(len(images))  # captions of others that rank above the best own one, or tie
    for block in blocks:
        scores = scores_of(texts[block], images, leg)
        scores[np.arange(len(scores)), owner[block]] = -np.inf
        before += (scores >= best).sum(axis=0)
    image_places = np.where(np.isneginf(best), np.inf, before + 1)
    forth, back = within(text_places, ks), within(image_places, ks)
    return PairFigures(forth, back, 100 * (sum(forth.values()) + sum(back.values())))


def class_recall(
    queries: Encoding,
    labels: Sequence[str],
    gallery: Encoding | None = None,
    gallery_labels: Sequence[str] = (),
    leg: MatchedLeg = "lexical",
    ks: Sequence[int] = (1, 2, 4, 8),
) -> dict[int, float]:
    """Return, for each k, the share of images with one of their class among the k nearest.

    Without a gallery, each query is searched for among the other queries. An image that is alone
    in its class counts as not found.
    """
    items = queries if gallery is None else gallery
    theirs = np.asarray(labels if gallery is None else gallery_labels)
    own = np.asarray(labels)
    if len(own) != len(queries) or len(theirs) != len(items) or not len(own):
        raise ValueError(f"{len(own)} and {len(theirs)} labels do not fit the images")
    places = np.empty(len(queries))
    for at in range(0, len(queries), _BLOCK):
        scores = scores_of(queries[at : at + _BLOCK], items, leg)
        rows = np.arange(len(scores))
        if gallery is None:
            scores[rows, at + rows] = -np.inf
        same = own[at : at + _BLOCK, None] == theirs
        if gallery is None:
            same[rows, at + rows] = False
        best = np.where(same, scores, -np.inf).max(axis=1)
        ahead = ((scores >= best[:, None]) & ~same).sum(axis=1)
        places[at : at + _BLOCK] = np.where(np.isneginf(best), np.inf, ahead + 1)
    return within(places, ks)


def zero_shot(
    images: Encoding,
    labels: Sequence[str],
    names: Encoding,
    name_labels: Sequence[str],
    leg: MatchedLeg = "lexical",
    ks: Sequence[int] = (1, 5),
) -> ClassFigures:
    """Classify images by the nearest class name; each class has one name."""
    columns = {label: column for column, label in enumerate(name_labels)}
    if len(columns) != len(names) or len(labels) != len(images) or not {*labels} <= columns.keys():
        raise ValueError("each image must have one of the classes, and each class one name")
    own_at = np.array([columns[label] for label in labels])
    places = np.empty(len(labels))
    for at in range(0, len(labels), _BLOCK):
        scores = scores_of(images[at : at + _BLOCK], names, leg)
        places[at : at + _BLOCK] = ranks(scores, own_at[at : at + _BLOCK])
    right = places <= 1
    shares = [float(right[own_at == column].mean()) for column in np.unique(own_at)]
    return ClassFigures(within(places, ks), float(np.mean(shares)))
