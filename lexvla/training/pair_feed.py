"""Batches of image-text pairs from a source of `lexvla.data`."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexvla.config import LexVLAConfig
from lexvla.data.loader import Batch, PairLoader
from lexvla.data.pairs import IndexedSource, ShardedSource
from lexvla.preprocessing import to_pixels
from lexvla.torch_model import TorchLexVLA
from lexvla.training.augment import random_view
from lexvla.training.feed import Draw, ItemVectors, own_words
from lexvla.training.recipe import Recipe
from lexvla.training.sources import classes_of, parents_of
from lexvla.vocabulary import Vocabulary

__all__ = ["PairFeed"]

logger = logging.getLogger(__name__)


class PairFeed:
    """A `Feed` of decoded pairs in a resumable order; see `PairLoader`."""

    def __init__(
        self,
        source: IndexedSource | ShardedSource,
        recipe: Recipe,
        config: LexVLAConfig,
        vocabulary: Vocabulary,
        rank: int,
        world_size: int,
    ) -> None:
        data, loss = recipe.data, recipe.loss
        self.recipe, self.config, self.vocabulary = recipe, config, vocabulary
        self.classes = classes_of(source) if loss.needs_items else []
        self.parents = None
        if loss.proxy and loss.tree and not isinstance(source, ShardedSource):
            self.parents = parents_of(source, self.classes)
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        self._loader = PairLoader(
            source,
            data.batch_size,
            seed=recipe.train.seed,
            drop_last=True,
            workers=data.workers,
            rank=rank,
            world_size=world_size,
            require_labels=loss.needs_items,
            skipped_path=Path(recipe.output) / "skipped.jsonl",
        )
        self._batches: Any = self._loader.forever()
        self._pool = ThreadPoolExecutor(max(1, data.workers))

    def draw(self, seed: int) -> Draw:
        """Return the next batch."""
        batch = next(self._batches)
        items = relevance = None
        if self.classes:
            items = torch.tensor([self._numbers[str(name)] for name in batch.labels])
        if self.recipe.loss.needs_relevance and items is not None:
            relevance = torch.nn.functional.one_hot(items, len(self.classes)).float()
        image_words = text_words = None
        if self.recipe.loss.own_words:
            captions = [" ".join(each) for each in batch.captions]
            image_words = own_words(captions, self.vocabulary)
            text_words = own_words(batch.texts, self.vocabulary)

        def images(number: int, side: int) -> Tensor:
            return self._views(batch, number, side)

        return Draw(batch.texts, images, items, relevance, image_words, text_words)

    def _views(self, batch: Batch, seed: int, side: int) -> Tensor:
        run, config = self.recipe.train, self.config

        def make(number: int) -> np.ndarray:
            rng = np.random.default_rng([seed, number])
            return random_view(batch.images[number], side, run.crop, run.jitter, rng)

        views = list(self._pool.map(make, range(len(batch))))
        return to_pixels(views, config.image_mean, config.image_std)

    def item_vectors(self, model: TorchLexVLA, seed: int) -> ItemVectors | None:
        """Return None: pairs have no concepts."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, as JSON values."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self._loader.load_state_dict(state)

    def close(self) -> None:
        """Stop its threads, and say how often a record was skipped."""
        skipped = self._loader.skipped
        if skipped.count:
            logger.warning("%d times a record was skipped; see %s", skipped.count, skipped.path)
        self._batches.close()
        self._pool.shutdown()
