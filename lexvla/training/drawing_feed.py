"""Batches of emoji drawings: two drawings of each item, from two sets, and two texts about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.config import LexVLAConfig
from lexvla.data.emoji import EmojiDrawings
from lexvla.errors import InputError
from lexvla.losses import class_levels
from lexvla.training.augment import augment
from lexvla.training.feed import Draw, own_words
from lexvla.training.recipe import Recipe
from lexvla.vocabulary import Vocabulary

__all__ = ["DrawingFeed"]

_LABEL_SHARE = 0.8  # of a label's meaning that is its own item alone


class DrawingFeed:
    """Draw items, each with its label beside one drawing and another text beside the other.

    A text belongs to all items that bear its words: "animal" to many, and a label to its own item
    above all.

    Args:
        drawings: What is drawn from.
        recipe: Gives the batch size, two rows an item, and the strength of the views' changes.
        config: Tells how the model reads images.
        vocabulary: The columns of words.

    Raises:
        InputError: There are fewer items than a batch needs, or the batch is of an odd number.
    """

    def __init__(
        self,
        drawings: EmojiDrawings,
        recipe: Recipe,
        config: LexVLAConfig,
        vocabulary: Vocabulary,
    ) -> None:
        size = recipe.data.batch_size
        if size % 2 or size // 2 > len(drawings.items):
            rule = f"must be even and at most {2 * len(drawings.items)}: each item fills two rows"
            raise InputError(f"[data] batch_size {size}", rule)
        self.drawings, self.vocabulary = drawings, vocabulary
        self.classes = [item.id for item in drawings.items]
        self.parents: list[list[int]] | None = None
        if recipe.loss.proxy and recipe.loss.tree:
            above = {item.id: item.subgroup for item in drawings.items}
            self.parents = class_levels(self.classes, above)
        self._strength = recipe.train.jitter
        self._statistics = config.image_mean, config.image_std
        self._size = size // 2
        self._words = torch.from_numpy(drawings.word_weights(vocabulary))
        self._has_word = (self._words > 0).bfloat16()  # 0 and 1: exact in 16 bits, sums too

    def draw(self, seed: int) -> Draw:
        """Return a random batch: all labels and first drawings, then the others."""
        rng = np.random.default_rng(seed)
        drawings = self.drawings
        numbers = rng.choice(len(drawings.items), self._size, replace=False)
        rows = drawings.sample_drawings(numbers, rng).reshape(-1)
        chosen = [drawings.items[number] for number in numbers]
        texts = [item.label for item in chosen]
        texts += [drawings.sample_text(item, rng) for item in chosen]
        items = torch.from_numpy(numbers).repeat(2)
        own = own_words(texts, self.vocabulary)
        image_words = self._words[items]
        # A label stands for its item, with all the item's words; another text for its own words.
        text_words = torch.cat([image_words[: self._size], own[self._size :]])
        pixels = torch.from_numpy(drawings.pixels[rows])

        def images(number: int, side: int) -> Tensor:
            generator = torch.Generator().manual_seed(number)
            return augment(pixels, side, self._strength, generator, *self._statistics)

        return Draw(texts, images, items, self._relevance(own, items), image_words, text_words)

    def _relevance(self, own: Tensor, items: Tensor) -> Tensor:
        """Share each text out over the items that bear all of its words."""
        own = own.to(self._has_word.dtype)
        borne = (own @ self._has_word.T >= own.sum(1, keepdim=True)).float()
        itself = functional.one_hot(items, len(self._has_word)).float()
        borne = torch.maximum(borne, itself)
        shared = borne / borne.sum(1, keepdim=True)
        label = slice(self._size)
        shared[label] = _LABEL_SHARE * itself[label] + (1 - _LABEL_SHARE) * shared[label]
        return shared

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: batches follow from their seeds alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned."""

    def close(self) -> None:
        """Have no threads to stop."""
