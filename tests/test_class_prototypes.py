"""Made-up feature maps of a classifier's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexvla.training import class_prototypes
from lexvla.training.class_prototypes import ClassPrototypes

MAPS, CELLS, CHANNELS, FINE, CLASSES = 12, 9, 24, 8, 6

pytestmark = pytest.mark.usefixtures("one_thread")


def some_maps() -> np.ndarray:
    """Return maps of rectified channels; the finer channels say which map and cell they are of."""
    rng = np.random.default_rng(0)
    maps = rng.normal(0.3, 0.6, (MAPS, CELLS, CHANNELS + FINE)).clip(0, 6)
    maps[..., CHANNELS:] = 10 * np.arange(MAPS * CELLS).reshape(MAPS, CELLS, 1) + np.arange(FINE)
    return maps.astype(np.float16)


def classifier() -> Tensor:
    return torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(1))


def prototypes() -> ClassPrototypes:
    means = torch.from_numpy(some_maps()[..., :CHANNELS].astype(np.float32)).mean(1)
    return ClassPrototypes(classifier(), means)


def make(classes: Tensor, seed: int) -> Tensor:
    return prototypes().make(classes, some_maps(), np.random.default_rng(seed), seed)


@given(st.integers(0, 10**6), st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=9))
def test_shape_and_range(seed: int, classes: list[int]) -> None:
    made = make(torch.tensor(classes), seed)
    assert made.shape == (len(classes), CELLS, CHANNELS + FINE)
    assert made.dtype == torch.float32
    own = made[..., :CHANNELS]
    assert own.min() >= 0
    assert own.max() <= 6
    # Each cell has the finer stage of one real cell, whole.
    finer = made[..., CHANNELS:]
    numbers = finer[..., 0] / 10
    assert torch.equal(numbers, numbers.round())
    assert set(numbers.flatten().tolist()) <= set(range(MAPS * CELLS))
    assert torch.equal(finer, finer[..., :1] + torch.arange(FINE))


def test_the_finer_stage_says_nothing_of_the_map() -> None:
    """A map's cells come from several maps, and seldom from their own place."""
    made = make(torch.arange(CLASSES), 3)
    numbers = (made[..., CHANNELS] / 10).long()
    assert all(len(set((row // CELLS).tolist())) > 1 for row in numbers)
    assert (numbers % CELLS == torch.arange(CELLS)).float().mean() < 0.4


def test_all_follows_from_the_seed() -> None:
    classes = torch.tensor([0, 3, 3, 5])
    assert torch.equal(make(classes, 7), make(classes, 7))
    assert not torch.equal(make(classes, 7), make(classes, 8))
    found = make(classes, 7)
    assert not torch.equal(found[1], found[2])  # two of a class are not alike


def test_most_are_what_the_classifier_takes_them_for() -> None:
    classes = torch.arange(CLASSES).repeat(40)
    own = make(classes, 1)[..., :CHANNELS]
    taken = (own.mean(1) @ classifier().T).argmax(1)
    assert (taken == classes).float().mean() > 0.85
    plain = torch.from_numpy(some_maps()[..., :CHANNELS].astype(np.float32)).mean(1)
    assert len((plain @ classifier().T).argmax(1).unique()) < CLASSES  # drawings are none of them


def test_cells_that_are_not_moved_lie_between_drawings_and_their_centre(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_LEAST", "_MOST"):
        monkeypatch.setattr(class_prototypes, name, 0.0)
    maps = some_maps()
    made = make(torch.tensor([0, 1, 2]), 5)[..., :CHANNELS]
    real = torch.from_numpy(maps[..., :CHANNELS].astype(np.float32))
    centre = real.mean(1).mean(0)
    for each in made:
        # One share of the way from the centre to one map, the same for all its cells.
        shares = []
        for one in real:
            away = (one - centre).flatten()
            share = (each - centre).flatten() @ away / (away @ away)
            shares.append((((each - centre).flatten() - share * away).norm().item(), share.item()))
        distance, share = min(shares)
        assert distance < 1e-3
        assert 0 <= share <= 0.7


def test_some_cells_are_moved_and_some_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = torch.zeros(200, dtype=torch.long)
    moved = make(classes, 2)
    for name in ("_LEAST", "_MOST"):
        monkeypatch.setattr(class_prototypes, name, 0.0)
    still = make(classes, 2)
    shares = (moved != still).any(2).float().mean(1)
    # From a fifth to nine tenths of a map's nine cells.
    assert shares.mean().item() == pytest.approx(0.55, abs=0.05)
    assert shares.min() < 0.35
    assert shares.max() > 0.8
    assert torch.equal(moved[..., CHANNELS:], still[..., CHANNELS:])


def test_maps_may_be_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "maps.npy", some_maps())
    maps = np.load(tmp_path / "maps.npy", mmap_mode="r")
    classes = torch.tensor([2, 0])
    found = prototypes().make(classes, maps, np.random.default_rng(4), 4)
    assert torch.equal(found, make(classes, 4))
    assert torch.isfinite(found).all()
