"""Batches for training steps, and the protocol of what provides them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lexvla.data.emoji import content_columns
from lexvla.image_tower import CachedCells
from lexvla.torch_model import TorchLexVLA
from lexvla.vocabulary import Vocabulary

__all__ = ["Draw", "Feed", "ItemVectors", "own_words"]


@dataclass(frozen=True)
class Draw:
    """A batch of n images and n texts; text i belongs to image i.

    Attributes:
        texts: The texts.
        images: Maps a seed and a side in pixels to a random view of each image, (n, 3, side, side)
            float32, normalised for the model; or to a frozen vision model's output for one.
        items: (n,) long, item or class of each pair.
        relevance: (n, items) float32, relevance of each text to the items; rows sum to 1.
        image_words: (n, V) float32, weights of each image's own words.
        text_words: (n, V) float32, weights of each text's own words.
        other_texts: Texts without an image.
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
    """Provides the batches of one process.

    Attributes:
        classes: Names of the items or classes, if a loss needs them.
        parents: Parents of the classes, if a loss needs the data's tree.
    """

    classes: list[str]
    parents: list[list[int]] | None

    def draw(self, seed: int) -> Draw:
        """Return the next batch; its randomness depends on the seed."""

    def item_vectors(self, model: TorchLexVLA, seed: int) -> ItemVectors | None:
        """Return the vectors of the items, where they are known before the first step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, as JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`."""

    def close(self) -> None:
        """Stop threads."""


def own_words(texts: Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """Return (texts, V) float32: 1 for each word of a text in the vocabulary."""
    words = torch.zeros(len(texts), len(vocabulary))
    for row, text in enumerate(texts):
        words[row, content_columns(text, vocabulary)] = 1
    return words
