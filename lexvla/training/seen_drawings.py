"""Drawings as seen by a frozen vision model and the memory of concepts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.concept_memory import LAYOUT, ConceptMemory, with_level
from lexvla.data.emoji import EmojiDrawings
from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla.image_tower import CachedCells
from lexvla.lexical_head import lexical_vector
from lexvla.torch_model import TorchLexVLA
from lexvla.training.cell_cache import cache_cells
from lexvla.training.class_prototypes import ClassPrototypes
from lexvla.training.concept_start import (
    fill_codebook,
    fill_dense_head,
    fill_memory,
    folds_of,
    held_out_cosines,
    pool,
    read_classifier,
)
from lexvla.training.feed import ItemVectors
from lexvla.training.recipe import Recipe

__all__ = ["SeenDrawings"]

_CHUNK = 512
_PROTOTYPES = 6  # synthetic maps of each class, for its vector


class SeenDrawings:
    """Provide cached views of drawings and synthetic ones of classes.

    An image is compared with the items by a memory that has not seen its style.

    Args:
        drawings: Drawings, with the classes of the vision model's classifier.
        recipe: Recipe with folder, views, folds and patches.
        model: Model whose memory of concepts and image codebook are set in closed form.

    Attributes:
        known: Numbers of the emoji with drawings in at least two folds.
    """

    def __init__(self, drawings: EmojiDrawings, recipe: Recipe, model: TorchLexVLA) -> None:
        data, tower = recipe.data, model.image_tower
        memory = _memory(drawings, model)
        self._memory, self._patches = memory, data.patches
        if "vision_model" not in recipe.model:
            raise InputError("[model] vision_model", "must name a folder, for [data] views")
        folder = Path(recipe.model["vision_model"])
        weight, bias = _classifier(folder, memory)
        self._cells = cache_cells(
            Path(recipe.output) / "cells",
            tower,
            model.config,
            drawings.pixels,
            data.views,
            recipe.train.jitter,
            recipe.train.seed,
        )
        views, count, cells, channels = self._cells.shape
        self._maps = self._cells.reshape(views * count, cells, channels)
        pooled = pool(self._maps, memory.sizes.channels)
        item = torch.from_numpy(drawings.item.astype(np.int64)).repeat(views)
        styles = [drawings.style_names[number] for number in np.unique(drawings.style)]
        numbers = np.unique(drawings.style, return_inverse=True)[1]
        fold = torch.tensor(folds_of(styles, data.folds))[torch.from_numpy(numbers)].repeat(views)
        fill_memory(memory, pooled, item, folder)
        # Image vectors are fixed before the first step, and texts learn to match them.
        model.image_codebook.requires_grad_(False)
        words = torch.from_numpy(drawings.word_weights(model.vocabulary))
        fill_codebook(model.image_codebook, words)
        if model.image_dense_head is not None:
            fill_dense_head(model.image_dense_head, words, recipe.train.seed)
        sizes = memory.sizes
        self._cosines, known = held_out_cosines(pooled, item, fold, sizes.items, sizes.layout)
        unknown = item[~known].unique().numpy()
        self.known = np.setdiff1d(np.arange(drawings.drawn), unknown)
        self._logits = (pooled.means @ weight.T + bias).half()
        self._prototypes = ClassPrototypes(weight, pooled.means)
        self._item, self._drawn = item, drawings.drawn

    def item_vectors(self, model: TorchLexVLA, seed: int) -> ItemVectors:
        """Return the words of each item, and what the model says of it; classes included.

        Args:
            model: The one that was given before.
            seed: All that is random follows from it.
        """
        drawn = torch.cat([self._cosines, self._logits], dim=1)
        classes = torch.arange(self._memory.sizes.classes).repeat(_PROTOTYPES) + self._drawn
        whole = torch.cat([drawn, self._class_wholes(seed)])
        item = torch.cat([self._item, classes])
        items, head = int(item.max()) + 1, model.image_dense_head
        words = torch.zeros(items, len(model.image_codebook))
        dense = None if head is None else torch.zeros(items, model.config.dense_width)
        for rows, of_items in zip(whole.split(_CHUNK), item.split(_CHUNK), strict=True):
            said = self._encode(model, rows)
            words.index_add_(0, of_items, torch.from_numpy(said.lexical.toarray()))
            if dense is not None and said.dense is not None:
                dense.index_add_(0, of_items, torch.from_numpy(said.dense))
        own = model.image_codebook.detach()[:, :-1].T  # all but the level of absent words
        return ItemVectors(
            functional.normalize(own, dim=1),
            functional.normalize(words, dim=1),
            None if dense is None else functional.normalize(dense, dim=1),
        )

    def encode(self, model: TorchLexVLA, rows: np.ndarray) -> Encoding:
        """Encode drawings by a memory that has not seen their styles.

        Args:
            model: The one that was given before, or a trained one of the same memory.
            rows: (n,) numbers of drawings, of which the first view is taken.
        """
        parts = torch.from_numpy(rows).split(_CHUNK)
        whole = (torch.cat([self._cosines[part], self._logits[part]], dim=1) for part in parts)
        return Encoding.concat([self._encode(model, each) for each in whole])

    @torch.no_grad()
    def _encode(self, model: TorchLexVLA, whole: Tensor) -> Encoding:
        """Encode images, of which only the comparison with the concepts is known."""
        states, head = with_level(self._memory.shares(whole.float())), model.image_dense_head
        lexical = model.sparsify(lexical_vector(states @ model.image_codebook.T))
        return Encoding(lexical, dense=None if head is None else head(states).numpy())

    def _class_wholes(self, seed: int) -> Tensor:
        """Compare synthetic maps of every class with the concepts."""
        rng, parts = np.random.default_rng(seed), []
        classes = torch.arange(self._memory.sizes.classes)
        for number in range(_PROTOTYPES):
            for chosen in classes.split(100):
                made = self._prototypes.make(chosen, self._maps, rng, seed + 1000 * number)
                with torch.no_grad():
                    parts.append(self._memory.whole(made).half())
        return torch.cat(parts)

    def views(self, rows: np.ndarray, classes: Tensor, seed: int) -> CachedCells:
        """Return views of the first drawings, classes, the second drawings and classes again.

        Args:
            rows: (2, n) numbers of drawings.
            classes: (m,) long.
            seed: Seed of the views.
        """
        rng = np.random.default_rng(seed)
        parts = []
        for number, drawn in enumerate(rows):
            at = rng.integers(len(self._cells), size=len(drawn)) * self._cells.shape[1] + drawn
            places = self._places(len(drawn), rng)
            cells = torch.from_numpy(self._maps[at[:, None], places].astype(np.float32))
            whole = torch.cat([self._cosines[at], self._logits[at]], dim=1).float()
            parts.append((cells, whole))
            if len(classes):
                made = self._prototypes.make(classes, self._maps, rng, seed + number)
                chosen = torch.from_numpy(self._places(len(classes), rng))
                with torch.no_grad():
                    whole = self._memory.whole(made)
                parts.append((made[torch.arange(len(made))[:, None], chosen], whole))
        cells, whole = (torch.cat(column) for column in zip(*parts, strict=True))
        return CachedCells(cells, whole)

    def _places(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Choose random cells of each map, sorted: (count, patches)."""
        cells = self._cells.shape[2]
        order = rng.random((count, cells)).argsort(axis=1)
        return np.sort(order[:, : self._patches or cells], axis=1)


def _memory(drawings: EmojiDrawings, model: TorchLexVLA) -> ConceptMemory:
    memory = model.image_tower.memory
    classes = len(drawings.items) - drawings.drawn
    if memory is None:
        raise InputError("[data] views", "need a model with a memory of concepts (concept_items)")
    sizes = memory.sizes
    if (sizes.items, sizes.classes) != (drawings.drawn, classes):
        rule = f"must be {drawings.drawn} and {classes}, as the data have"
        raise InputError("[model] concept_items and concept_classes", rule)
    for name, size, most in (
        ("layout_width", sizes.layout, (LAYOUT**2 + 1) * sizes.fine),
        ("local_rank", sizes.local, min(sizes.items, sizes.channels)),
    ):
        if size > most:
            raise InputError(f"[model] {name}", f"must be at most {most}, not {size}")
    return memory


def _classifier(folder: Path, memory: ConceptMemory) -> tuple[Tensor, Tensor]:
    weight, bias = read_classifier(folder)
    if weight.shape != memory.classifier.weight.shape:
        rule = f"has {len(weight)} classes of {weight.shape[1]} channels, and the memory"
        have, channels = memory.classifier.weight.shape
        raise InputError(str(folder), f"its classifier {rule} {have} of {channels}")
    return weight, bias
