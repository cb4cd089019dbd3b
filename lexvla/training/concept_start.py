"""The closed form that a memory of concepts begins with: whitened item and class directions."""

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
from lexvla.errors import InputError
from lexvla.lexical_head import elu1p
from lexvla.model import LexVLA

__all__ = [
    "Pooled",
    "fill_memory",
    "fill_values",
    "fit_values",
    "folds_of",
    "held_out_cosines",
    "memory_of",
    "pool",
    "read_classifier",
]

_LOOKS_SHRINK, _LAYOUT_SHRINK = 0.1, 0.2  # of the covariance towards its diagonal
_FLOOR = 1e-4  # of the mean variance, added to each
_VALUE, _WORD, _ABSENT = 2.0, 4.0, -4.0  # scales of the first values and word rows
# Of whole images by items and by classes, then of patches.
_SCALES = (20.0, 0.7, 2.0, 0.2)
_CLASS_BIAS = 0.0
_CHUNK = 256
_FIT_RATE, _FIT_BATCH, _FIT_ABSENT = 1e-2, 384, 3e-3


class Pooled(NamedTuple):
    """Describe N views by their whole maps: see `ConceptMemory.whole`.

    Attributes:
        looks: (N, channels) means of the channels' square roots.
        layout: (N, 9 * fine).
        means: (N, channels) means of the channels.
    """

    looks: Tensor
    layout: Tensor
    means: Tensor

    def rows(self, chosen: Tensor) -> Pooled:
        """Return some of the views."""
        return Pooled(*(each[chosen] for each in self))


class Directions(NamedTuple):
    """Give vectors of one kind unit length where items differ, and compare them with each item.

    Attributes:
        weight: (w, d), and
        bias: (w,), of the map that whitens a vector.
        keys: (items, w), unit; 0 for an item without examples.
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


def directions(
    vectors: Tensor, item: Tensor, items: int, shrink: float, width: int | None = None
) -> Directions:
    """Whiten vectors by how those of one item differ (linear discriminant analysis).

    Args:
        vectors: (N, d).
        item: (N,) long.
        items: How many there are; some may have no vector.
        shrink: Share of the diagonal in the covariance within items.
        width: Keep so many dimensions, those in which items differ most; None keeps all.

    Raises:
        InputError: No two vectors of one item differ.
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
        raise InputError("[data] views", "must show an item twice, to tell how its views differ")
    within = (1 - shrink) * within + torch.diag(shrink * spread + _FLOOR * spread.mean())
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
    """Compare each view with the items as seen in the other folds' drawings alone.

    In its own fold's eyes a drawing is always right; only those of others show how sure of a
    drawing in a new style the memory may be.

    Args:
        pooled: Of N views.
        item: (N,) long.
        fold: (N,) long.
        items: How many items.
        width: Of the layout's keys.

    Returns:
        (N, items) float16 sums of both cosines, and (N,) whether other folds know the item.

    Raises:
        InputError: There is one fold.
    """
    if len(fold.unique()) < 2:
        raise InputError("[data] folds", "must tell at least two groups of styles apart")
    cosines = torch.zeros(len(item), items, dtype=torch.float16)
    known = torch.zeros(len(item), dtype=torch.bool)
    for number in fold.unique():
        mine = fold == number
        looks, shape = _both(pooled.rows(~mine), item[~mine], items, width)
        cosines[mine] = (
            looks.cosines(pooled.looks[mine]) + shape.cosines(pooled.layout[mine])
        ).half()
        known[mine] = (item[~mine].bincount(minlength=items) > 0)[item[mine]]
    return cosines, known


def _both(pooled: Pooled, item: Tensor, items: int, width: int) -> tuple[Directions, Directions]:
    return (
        directions(pooled.looks, item, items, _LOOKS_SHRINK),
        directions(pooled.layout, item, items, _LAYOUT_SHRINK, width),
    )


@torch.no_grad()
def fill_memory(memory: ConceptMemory, pooled: Pooled, item: Tensor, folder: Path) -> None:
    """Set all of a memory but its values.

    Args:
        memory: Its items are those of the views.
        pooled: Of N views.
        item: (N,) long.
        folder: Of the vision model, for its classifier.
    """
    sizes = memory.sizes
    looks, shape = _both(pooled, item, sizes.items, sizes.layout)
    weight, bias = read_classifier(folder)
    _set(memory.whiten, looks.weight, looks.bias)
    _set(memory.layout, shape.weight, shape.bias)
    _set(memory.classifier, weight, bias)
    memory.item_keys.copy_(looks.keys)
    memory.layout_keys.copy_(shape.keys)
    # One patch's evidence: the same numerator, of its own channels, in few dimensions.
    length = (pooled.looks @ looks.weight.T + looks.bias).norm(dim=1).mean()
    left, values, right = torch.svd_lowrank(looks.keys @ looks.weight, sizes.local, niter=8)
    _set(memory.local, right.T, -(right.T @ pooled.looks.mean(0)))
    memory.local_keys.copy_(left * values / length)
    memory.scales.copy_(torch.tensor(_SCALES))
    memory.class_bias.fill_(_CLASS_BIAS)


@torch.no_grad()
def fill_values(model: LexVLA, words: Tensor) -> None:
    """Set values and word rows so that a concept's words stand out, as well as the width allows.

    Args:
        model: It has a memory of concepts.
        words: (concepts, V) weights.
    """
    memory = memory_of(model)
    width = memory.values.shape[1] - 1  # the last one holds the level of words that are absent
    left, values, right = torch.svd_lowrank(_rare_first(words), width, niter=6)
    level = values.sqrt()
    memory.values[:, :-1] = _VALUE * left * level
    memory.values[:, -1] = 1
    model.image_codebook[:, :-1] = _WORD / _VALUE * right * level
    model.image_codebook[:, -1] = _ABSENT
    # The adapter begins with nothing to add.
    last = model.image_tower.adapter.out[-1]
    for weight in last.parameters():
        weight.zero_()


def fit_values(model: LexVLA, words: Tensor, whole: Tensor, steps: int, seed: int) -> None:
    """Let values and word rows say of images what their concepts' words, mixed, would say.

    Without it the width, far below the number of concepts, blurs words.

    Args:
        model: Its values and word rows were filled.
        words: (concepts, V) weights.
        whole: (N, concepts) comparisons of images with concepts, see `ConceptMemory.whole`.
        steps: Of Adam; the rate falls to 0.
        seed: Of the batches.
    """
    memory, rare_first = memory_of(model), _rare_first(words)
    items, rows = memory.sizes.items, model.image_codebook
    image_items, image_classes = memory.scales[:2].tolist()
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam([memory.values, rows], lr=_FIT_RATE, betas=(0.9, 0.98))
    for step in tqdm(range(steps), desc="values", disable=None):
        adam.param_groups[0]["lr"] = _FIT_RATE * min(1.0, (step + 1) / 30) * (1 - step / steps)
        chosen = torch.randint(len(whole), (_FIT_BATCH,), generator=generator)
        scores = whole[chosen].float()
        scores = torch.cat([image_items * scores[:, :items], image_classes * scores[:, items:]], 1)
        # From sharp to twice as soft: patches differ in how sure they are.
        soft = 0.5 + torch.rand(_FIT_BATCH, 1, generator=generator)
        shares = (scores * soft).softmax(dim=1)
        wanted = _WORD * (shares @ rare_first) + _ABSENT
        with torch.autocast("cpu", torch.bfloat16):
            logits = (shares @ memory.values) @ rows.T
        logits = logits.float()
        alike = functional.cosine_similarity(elu1p(logits), elu1p(wanted))
        above = (logits - wanted - 0.5).clamp(min=0) * (wanted < _ABSENT + 1)
        loss = (1 - alike).mean() + _FIT_ABSENT * above.square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    adam.zero_grad(set_to_none=True)


def memory_of(model: LexVLA) -> ConceptMemory:
    """Return the model's memory of concepts.

    Raises:
        ValueError: It has none.
    """
    memory = model.image_tower.memory
    if memory is None:
        raise ValueError("the model has no memory of concepts")
    return memory


def _rare_first(words: Tensor) -> Tensor:
    """Weigh each word by how few concepts bear it, 1 on average."""
    idf = torch.log(1 + len(words) / (words > 0).sum(0).clamp(min=1))
    return words * (idf / idf.mean())


def read_classifier(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the (classes, channels) weight and (classes,) bias of a vision model's classifier.

    Raises:
        InputError: There is none in the folder.
    """
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            names = [name for name in keys if name.endswith("classifier.weight")]
            if len(names) != 1:
                raise InputError(str(path), "has no classifier, whose classes the memory takes")
            name = names[0].removesuffix("weight")
            return file.get_tensor(name + "weight").float(), file.get_tensor(name + "bias").float()
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"no readable vision model ({error})") from error


def _set(layer: torch.nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def folds_of(styles: Sequence[str], groups: Sequence[Sequence[str]]) -> list[int]:
    """Return the fold of each style: the group that names it, or one of its own.

    Raises:
        InputError: A group names a style that there is not, or two name one.
    """
    named = [name for group in groups for name in group]
    for name in named:
        if name not in styles:
            raise InputError("[data] folds", f"there is no style {name!r}")
        if named.count(name) > 1:
            raise InputError("[data] folds", f"name the style {name!r} twice")
    found = {name: number for number, group in enumerate(groups) for name in group}
    return [found.get(name, len(groups) + number) for number, name in enumerate(styles)]
