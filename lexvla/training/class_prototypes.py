"""Synthetic feature maps of a classifier's classes, in place of photographs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ClassPrototypes"]

_HIGHEST = 6.0  # the last activation is a ReLU6
_LEAST, _MOST = 4.0, 16.0  # distance that a cell is moved
_COVARIED = 0.8  # largest share of the covariance-weighted direction
_KEPT = 0.7  # largest share of a drawing's own cell that stays


class ClassPrototypes:
    """Move cells of real drawings in the classifier's direction of a class.

    A random share of a map's cells is moved, from a fifth to nine tenths; the finer stage's
    channels are taken from other maps, so that they carry no information.

    Args:
        weight: (classes, channels) weight of the classifier.
        means: (N, channels) pooled channels of drawings, for centre and covariance.
    """

    def __init__(self, weight: Tensor, means: Tensor) -> None:
        rest = means - means.mean(0)
        covariance = rest.T @ rest / len(rest)
        weight = weight - weight.mean(0)
        self._plain = functional.normalize(weight, dim=1)
        self._covaried = functional.normalize(weight @ covariance, dim=1)
        self._centre = means.mean(0)

    def make(
        self, classes: Tensor, maps: np.ndarray, rng: np.random.Generator, seed: int
    ) -> Tensor:
        """Return (n, T, C) float32 maps of n classes.

        Args:
            classes: (n,) long.
            maps: (N, T, C) real maps.
            rng: Chooses maps and cells.
            seed: Seed of other randomness.
        """
        generator = torch.Generator().manual_seed(seed)
        count, cells, channels = len(classes), maps.shape[1], len(self._centre)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        chosen = np.sort(rng.integers(len(maps), size=count))
        made = torch.from_numpy(np.asarray(maps[chosen], np.float32))
        # The finer stage of each cell comes from a random cell of a random map.
        other = np.stack([each[rng.permutation(cells)] for each in maps[chosen, :, channels:]])
        mixed = rng.permuted(np.broadcast_to(np.arange(count)[:, None], (count, cells)), axis=0)
        made[..., channels:] = torch.from_numpy(
            other[mixed, np.arange(cells)[None]].astype(np.float32)
        )
        share = _COVARIED * uniform(count, 1)
        towards = functional.normalize(
            (1 - share) * self._plain[classes] + share * self._covaried[classes], dim=1
        )
        moved = uniform(count, cells, 1) < 0.2 + 0.7 * uniform(count, 1, 1)
        far = (_LEAST + (_MOST - _LEAST) * uniform(count, 1, 1)) * (0.5 + uniform(count, cells, 1))
        kept = _KEPT * uniform(count, 1, 1)
        own = self._centre + kept * (made[..., :channels] - self._centre)
        made[..., :channels] = (own + moved * far * towards[:, None]).clamp(0, _HIGHEST)
        return made
