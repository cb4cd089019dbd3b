"""Closed-form weights of a memory of concepts: whitened directions of items and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexvla.concept_memory import ConceptMemory, layout, roots
from lexvla.dense_head import DenseHead
from lexvla.errors import InputError

__all__ = [
    "Pooled",
    "fill_codebook",
    "fill_dense_head",
    "fill_memory",
    "folds_of",
    "held_out_cosines",
    "pool",
    "read_classifier",
]

_SHRINK = 0.1  # shrinkage of the covariance towards its diagonal
_FLOOR = 1e-4  # share of the mean variance, added to all variances
_WORD, _ABSENT = 4.0, -4.0  # logits of words of a concept, and of other words
# Scales of images by items and by classes, then of patches; exponent of the gate.
_SCALES = (20.0, 0.7, 10.0, 0.2, 0.2)
_LOOKS = 0.6  # weight of the pooled channels' cosine, relative to the layout's
_CHUNK = 256


class Pooled(NamedTuple):
    """Descriptions of N views by their maps; see `ConceptMemory.whole`.

    Attributes:
        looks: (N, channels) means of the channels' square roots.
        layout: (N, 10 * fine).
        means: (N, channels) means of the channels.
    """

    looks: Tensor
    layout: Tensor
    means: Tensor

    def rows(self, chosen: Tensor) -> Pooled:
        """Return some of the views."""
        return Pooled(*(each[chosen] for each in self))


class Directions(NamedTuple):
    """A whitening of vectors, and the whitened directions of items.

    Attributes:
        weight: (w, d) of the whitening.
        bias: (w,) of the whitening.
        keys: (items, w) unit vectors; 0 for an item without examples.
    """

    weight: Tensor
    bias: Tensor
    keys: Tensor

    def cosines(self, vectors: Tensor) -> Tensor:
        """Return (N, items)."""
        return functional.normalize(vectors @ self.weight.T + self.bias, dim=1) @ self.keys.T


def pool(cells: np.ndarray, channels: int) -> Pooled:
    """Describe each of (N, T, C) maps, read in chunks."""
    parts = []
    for start in tqdm(range(0, len(cells), _CHUNK), desc="pooling", disable=None):
        maps = torch.from_numpy(np.asarray(cells[start : start + _CHUNK], np.float32))
        own = maps[..., :channels]
        parts.append(Pooled(roots(own).mean(1), layout(maps[..., channels:]), own.mean(1)))
    return Pooled(*(torch.cat(column) for column in zip(*parts, strict=True)))


def directions(vectors: Tensor, item: Tensor, items: int, width: int | None = None) -> Directions:
    """Whiten vectors by the covariance within items (linear discriminant analysis).

    Args:
        vectors: (N, d).
        item: (N,) long.
        items: Number of items; some may have no vector.
        width: Dimensions to keep, those in which items differ most; by default all.
    """
    counts = item.bincount(minlength=items)
    live = counts > 0
    means = torch.zeros(items, vectors.shape[1]).index_add_(0, item, vectors)
    means /= counts.clamp(min=1)[:, None]
    centre = means[live].mean(0)
    rest = vectors - means[item]
    within = rest.T @ rest / len(rest)
    spread = within.diagonal()
    if not spread.any():
        raise InputError("[data] views", "must show an item twice, to measure how its views differ")
    within = (1 - _SHRINK) * within + torch.diag(_SHRINK * spread + _FLOOR * spread.mean())
    factor = torch.linalg.cholesky(within.double())
    size = len(spread)
    weight = torch.linalg.solve_triangular(
        factor, torch.eye(size, dtype=torch.float64), upper=False
    ).float()
    keys = functional.normalize((means - centre) @ weight.T, dim=1) * live[:, None]
    if width is not None and width < size:
        among = torch.linalg.eigh((keys.T @ keys).double()).eigenvectors[:, -width:].T.float()
        weight = among @ weight
        keys = functional.normalize(keys @ among.T, dim=1) * live[:, None]
    return Directions(weight, -(weight @ centre), keys)


def held_out_cosines(
    pooled: Pooled, item: Tensor, fold: Tensor, items: int, width: int
) -> tuple[Tensor, Tensor]:
    """Compare each view with the items as known from the drawings of other folds.

    With its own fold, a drawing is always recognised; only other folds show the confidence for a
    drawing in a new style.

    Args:
        pooled: Descriptions of N views.
        item: (N,) long.
        fold: (N,) long.
        items: Number of items.
        width: Width of the layout keys.

    Returns:
        (N, items) float16 weighted sums of both cosines, and (N,) bool, whether other folds know
        the item.
    """
    if len(fold.unique()) < 2:
        raise InputError("[data] folds", "must have at least two groups of styles")
    cosines = torch.zeros(len(item), items, dtype=torch.float16)
    known = torch.zeros(len(item), dtype=torch.bool)
    for number in fold.unique():
        mine = fold == number
        looks, shape = _both(pooled.rows(~mine), item[~mine], items, width)
        cosines[mine] = (
            _LOOKS * looks.cosines(pooled.looks[mine]) + shape.cosines(pooled.layout[mine])
        ).half()
        known[mine] = (item[~mine].bincount(minlength=items) > 0)[item[mine]]
    return cosines, known


def _both(pooled: Pooled, item: Tensor, items: int, width: int) -> tuple[Directions, Directions]:
    return (
        directions(pooled.looks, item, items),
        directions(pooled.layout, item, items, width),
    )


@torch.no_grad()
def fill_memory(memory: ConceptMemory, pooled: Pooled, item: Tensor, folder: Path) -> None:
    """Set all weights of a memory.

    Args:
        memory: Memory of the views' items.
        pooled: Descriptions of N views.
        item: (N,) long.
        folder: Folder of the vision model, for its classifier.
    """
    sizes = memory.sizes
    looks, shape = _both(pooled, item, sizes.items, sizes.layout)
    weight, bias = read_classifier(folder)
    _set(memory.whiten, looks.weight, looks.bias)
    _set(memory.layout, shape.weight, shape.bias)
    _set(memory.classifier, weight, bias)
    memory.item_keys.copy_(_LOOKS * looks.keys)
    memory.layout_keys.copy_(shape.keys)
    # A patch's evidence: the same numerator for its channels, in few dimensions.
    length = (pooled.looks @ looks.weight.T + looks.bias).norm(dim=1).mean()
    left, values, right = torch.svd_lowrank(looks.keys @ looks.weight, sizes.local, niter=8)
    _set(memory.local, right.T, -(right.T @ pooled.looks.mean(0)))
    memory.local_keys.copy_(left * values / length)
    memory.scales.copy_(torch.tensor(_SCALES))


@torch.no_grad()
def fill_codebook(codebook: Tensor, words: Tensor) -> None:
    """Set an image codebook (V, concepts + 1) from (concepts, V) weights of words, with idf."""
    codebook[:, :-1] = _WORD * rare_first(words).T
    codebook[:, -1] = _ABSENT


@torch.no_grad()
def fill_dense_head(head: DenseHead, words: Tensor, seed: int) -> None:
    """Let concepts that share words lie near each other: their words by a random projection.

    Args:
        head: Of images.
        words: (concepts, V) weights.
        seed: Of the projection.

    References:
        Achlioptas 2003, "Database-friendly random projections".
    """
    generator = torch.Generator().manual_seed(seed)
    rows = functional.normalize(rare_first(words), dim=1)
    rows = rows @ torch.randn(words.shape[1], len(head.projection.bias), generator=generator)
    head.projection.weight[:, :-1] = functional.normalize(rows, dim=1).T
    head.projection.weight[:, -1] = 0
    head.projection.bias.zero_()


def rare_first(words: Tensor) -> Tensor:
    """Weigh each of (concepts, V) words by how few concepts bear it, 1 on average."""
    idf = torch.log(1 + len(words) / (words > 0).sum(0).clamp(min=1))
    return words * (idf / idf.mean())


def read_classifier(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the (classes, channels) weight and (classes,) bias of a vision model's classifier."""
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            names = [name for name in keys if name.endswith("classifier.weight")]
            if len(names) != 1:
                raise InputError(str(path), "has no classifier, which the memory needs")
            name = names[0].removesuffix("weight")
            return file.get_tensor(name + "weight").float(), file.get_tensor(name + "bias").float()
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"the vision model cannot be read ({error})") from error


def _set(layer: torch.nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def folds_of(styles: Sequence[str], groups: Sequence[Sequence[str]]) -> list[int]:
    """Return the fold of each style: its group, or a fold of its own."""
    named = [name for group in groups for name in group]
    for name in named:
        if name not in styles:
            raise InputError("[data] folds", f"there is no style {name!r}")
        if named.count(name) > 1:
            raise InputError("[data] folds", f"name the style {name!r} twice")
    found = {name: number for number, group in enumerate(groups) for name in group}
    return [found.get(name, len(groups) + number) for number, name in enumerate(styles)]
