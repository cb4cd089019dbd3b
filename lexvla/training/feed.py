"""What a step draws from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lexvla.data.emoji import content_columns
from lexvla.image_tower import CachedCells
from lexvla.model import LexVLA
from lexvla.vocabulary import Vocabulary

__all__ = ["Draw", "Feed", "ItemVectors", "own_words"]


@dataclass(frozen=True)
class Draw:
    """Hold n images and n texts; text i belongs to image i.

    Attributes:
        texts: The texts.
        images: Called with a number for all that is random and the side in pixels, it makes one
            view of each image, (n, 3, side, side) float32, normalised as the model reads them; or
            what a frozen vision model made of one.
        items: (n,) long, the number of the item, or class, that each pair is of.
        relevance: (n, items) float32, how each text's meaning is shared out over the items; each
            row sums to 1.
        image_words: (n, V) float32, weights of each image's own words.
        text_words: The same of each text.
        other_texts: Texts that belong to no image.
        other_words: (other texts, V) float32, weights of their words.
    """

    texts: list[str]
    images: Callable[[int, int], Tensor | CachedCells]
    items: Tensor | None = None
    relevance: Tensor | None = None
    image_words: Tensor | None = None
    text_words: Tensor | None = None
    other_texts: Sequence[str] = ()
    other_words: Tensor | None = None


class ItemVectors(NamedTuple):
    """Hold what is known of the items before the first step.

    Attributes:
        texts: (items, V) unit rows, the items' own words.
        images: (items, V) unit rows, the words that the model says of their images.
        dense: (items, w) unit rows of their images, if the model has dense vectors.
    """

    texts: Tensor
    images: Tensor
    dense: Tensor | None


class Feed(Protocol):
    """Give the batches of one process.

    Attributes:
        classes: Names of the items or classes, if a term asks for them.
        parents: The parent of each class, where the data have a tree and a term asks for it.
    """

    classes: list[str]
    parents: list[list[int]] | None

    def draw(self, seed: int) -> Draw:
        """Return the next batch; what is random in it follows from the seed."""

    def item_vectors(self, model: LexVLA, seed: int) -> ItemVectors | None:
        """Return the vectors of the items, where they are known before the first step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the place behind the last batch, as JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place that `state_dict` returned."""

    def close(self) -> None:
        """Stop its threads."""


def own_words(texts: Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """Return (texts, V) float32: 1 for each word of a text that the vocabulary has."""
    words = torch.zeros(len(texts), len(vocabulary))
    for row, text in enumerate(texts):
        words[row, content_columns(text, vocabulary)] = 1
    return words
