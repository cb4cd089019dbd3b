"""Batches of emoji drawings: two drawings of each item, from two sets, and two texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.config import LexVLAConfig
from lexvla.data.emoji import EmojiDrawings, word_columns
from lexvla.data.phrasings import phrase
from lexvla.errors import InputError
from lexvla.image_tower import CachedCells
from lexvla.losses import class_levels
from lexvla.torch_model import TorchLexVLA
from lexvla.training.augment import augment
from lexvla.training.feed import Draw, ItemVectors, own_words
from lexvla.training.recipe import Recipe
from lexvla.training.seen_drawings import SeenDrawings
from lexvla.vocabulary import Vocabulary

__all__ = ["DrawingFeed"]

_LABEL_SHARE = 0.8  # of a label's relevance that goes to its own item only


class DrawingFeed:
    """A `Feed` of items, each with its label for one drawing and another text for the other.

    A text is relevant to all items that have its words: "animal" to many, a label mostly to its
    own item. An item takes two rows of a batch. With ``seen``, cached outputs of a frozen vision
    model replace pixels.
    """

    def __init__(
        self,
        drawings: EmojiDrawings,
        recipe: Recipe,
        config: LexVLAConfig,
        vocabulary: Vocabulary,
        seen: SeenDrawings | None = None,
    ) -> None:
        size = recipe.data.batch_size
        if size % 2 or size // 2 > len(drawings.items):
            rule = f"must be even and at most {2 * len(drawings.items)}: each item fills two rows"
            raise InputError(f"[data] batch_size {size}", rule)
        classes = len(drawings.items) - drawings.drawn
        if classes and seen is None:
            raise InputError("[data.options] classes", "need a model with a memory of concepts")
        self.drawings, self.vocabulary, self._seen = drawings, vocabulary, seen
        self.classes = [item.id for item in drawings.items]
        self.parents: list[list[int]] | None = None
        if recipe.loss.proxy and recipe.loss.tree:
            above = {item.id: item.subgroup for item in drawings.items}
            self.parents = class_levels(self.classes, above)
        self._strength = recipe.train.jitter
        self._statistics = config.image_mean, config.image_std
        self._size = size // 2
        self._class_rows = round(recipe.data.class_share * self._size) if classes else 0
        self._noun_rows = recipe.data.noun_rows if drawings.nouns else 0
        for name, needed, there in (
            ("emoji", self._size - self._class_rows, len(self._choices())),
            ("classes", self._class_rows, classes),
        ):
            if needed > there:
                rule = f"need {needed} {name}, and there are {there} to draw from"
                raise InputError(f"[data] batch_size {size} and class_share", rule)
        self._words = torch.from_numpy(drawings.word_weights(vocabulary))
        self._has_word = (self._words > 0).bfloat16()  # 0 and 1: exact in 16 bits, sums too

    def draw(self, seed: int) -> Draw:
        """Return a random batch: first all labels with a drawing, then the other halves."""
        rng = np.random.default_rng(seed)
        drawings, drawn = self.drawings, self.drawings.drawn
        emoji = rng.choice(self._choices(), self._size - self._class_rows, replace=False)
        classes = rng.choice(len(drawings.items) - drawn, self._class_rows, replace=False)
        numbers = np.concatenate([emoji, classes + drawn])
        rows = drawings.sample_drawings(emoji, rng)
        chosen = [drawings.items[number] for number in numbers]
        texts = [item.label for item in chosen]
        texts += [drawings.sample_text(item, rng) for item in chosen]
        items = torch.from_numpy(numbers).repeat(2)
        own = own_words(texts, self.vocabulary)
        image_words = self._words[items]
        # A label has all of its item's words; another text only its own.
        text_words = torch.cat([image_words[: self._size], own[self._size :]])
        nouns = [drawings.nouns[i] for i in rng.integers(len(drawings.nouns), size=self._noun_rows)]
        other_words = torch.zeros(len(nouns), len(self.vocabulary))
        for row, (_, words) in enumerate(nouns):
            columns, weights = word_columns(words, self.vocabulary)
            other_words[row, columns] = torch.tensor(weights)
        # Relevance depends on the words, not on the phrasing.
        said = [phrase(text, rng) for text in [*texts, *(noun for noun, _ in nouns)]]

        def images(number: int, side: int) -> Tensor | CachedCells:
            if self._seen is not None:
                return self._seen.views(rows, torch.from_numpy(classes), number)
            pixels = torch.from_numpy(drawings.pixels[rows.reshape(-1)])
            generator = torch.Generator().manual_seed(number)
            return augment(pixels, side, self._strength, generator, *self._statistics)

        relevance = self._relevance(own, items)
        return Draw(
            said[: len(texts)],
            images,
            items,
            relevance,
            image_words,
            text_words,
            said[len(texts) :],
            other_words,
        )

    def _choices(self) -> np.ndarray:
        """Return the numbers of emoji to draw from."""
        if self._seen is None:
            return np.arange(self.drawings.drawn)
        return self._seen.known

    def _relevance(self, own: Tensor, items: Tensor) -> Tensor:
        """Distribute each text over the items that have all of its words."""
        own = own.to(self._has_word.dtype)
        borne = (own @ self._has_word.T >= own.sum(1, keepdim=True)).float()
        itself = functional.one_hot(items, len(self._has_word)).float()
        borne = torch.maximum(borne, itself)
        shared = borne / borne.sum(1, keepdim=True)
        label = slice(self._size)
        shared[label] = _LABEL_SHARE * itself[label] + (1 - _LABEL_SHARE) * shared[label]
        return shared

    def item_vectors(self, model: TorchLexVLA, seed: int) -> ItemVectors | None:
        """Return the items' vectors, where the model has a memory of concepts."""
        return None if self._seen is None else self._seen.item_vectors(model, seed)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: batches depend on their seeds only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: there are no threads."""
