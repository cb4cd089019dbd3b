"""Scenes of several demo drawings, with the drawing of each pixel known."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lexvla.data.demo_corpus import DemoItem
from lexvla_search.evaluation.patchdis import BACKGROUND, Scene

__all__ = ["DemoScenes"]

_CELL = 64  # pixels of a drawing, as it is in the corpus


@dataclass(frozen=True)
class DemoScenes:
    """Pictures of drawings side by side on white, the same on every iteration.

    The classes are the drawings whose label is one word of letters, so that names are compared as
    words and every model gets the same ones. They are dealt out like cards, and reshuffled when too
    few are left for a scene. A pixel belongs to a drawing that is at least half opaque there; the
    rest is background. A scene has `across` x `across` drawings.
    """

    items: Sequence[DemoItem]
    count: int = 400
    seed: int = 0
    across: int = 2

    def __post_init__(self) -> None:
        chosen = [item for item in self.items if item.label.isascii() and item.label.isalpha()]
        if len(chosen) < self.across**2:
            raise ValueError(f"only {len(chosen)} items have a label of one word")
        object.__setattr__(self, "items", tuple(chosen))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the label of each class number."""
        return tuple(item.label for item in self.items)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Scene]:
        """Yield each picture and its (height, width) int64 mask of places in `items`."""
        random = np.random.default_rng(self.seed)
        deck: list[int] = []
        for _ in range(self.count):
            if len(deck) < self.across**2:
                deck = random.permutation(len(self.items)).tolist()
            yield self._compose([deck.pop() for _ in range(self.across**2)])

    def _compose(self, hand: Sequence[int]) -> Scene:
        side = self.across * _CELL
        scene = Image.new("RGB", (side, side), "white")
        mask = np.full((side, side), BACKGROUND)
        for place, number in enumerate(hand):
            row, column = divmod(place, self.across)
            top, left = row * _CELL, column * _CELL
            drawing = Image.open(io.BytesIO(self.items[number].data)).convert("RGBA")
            scene.paste(drawing, (left, top), drawing)
            opaque = np.asarray(drawing)[..., 3] >= 128
            mask[top : top + _CELL, left : left + _CELL][opaque] = number
        return scene, mask
