"""Local mutual information: a global vector against patches or tokens (TCL)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from lexvla.losses.precision import dot_products

__all__ = ["local_loss", "pool_patches"]

SHIFT = 1e4  # no real logit comes near: at temperature 0.001 they end at 1000


def local_loss(
    student: Tensor,
    locals_: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Tell an item's own locals from all locals of the other items (TCL, LMI).

    For item n and local l the loss is
    ``-log e^{x_nl g_n / tau} / (e^{x_nl g_n / tau} + sum_{j != n, l'} e^{x_jl' g_n / tau})``:
    its own other locals are no negatives. It is averaged over the real locals of each item, then
    over the items. No gradient reaches the locals.

    Args:
        student: (N, d) unit global vectors g. N is the global batch: gather the rows of all
            processes first.
        locals_: (N, L, d) the teacher's locals x, such as `pool_patches` gives.
        temperature: One for all of TCL's terms, such as `InfoNCE.temperature`.
        mask: (N, L) bool, False for padding, which is neither a positive nor a negative.

    References:
        Yang et al. 2022 (TCL), arXiv 2202.10401.
    """
    count = len(student)
    scores = dot_products(student, locals_.detach().flatten(0, 1)) / temperature
    scores = scores.unflatten(1, (count, -1))  # (N, N, L)
    own = torch.arange(count, device=scores.device)
    positive = scores[own, own]  # (N, L)
    itself = torch.eye(count, dtype=torch.bool, device=scores.device)[:, :, None]
    scores = scores.masked_fill(itself, -SHIFT)
    if mask is not None:
        scores = scores.masked_fill(~mask, -SHIFT)
        # The sign is right: a pad with a huge positive logit costs nothing.
        positive = positive.masked_fill(~mask, SHIFT)
    negative = scores.flatten(1).logsumexp(dim=1, keepdim=True)
    losses = functional.softplus(negative - positive)
    if mask is None:
        return losses.mean()
    return (losses.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def pool_patches(patches: Tensor, grid: tuple[int, int] | None = None, side: int = 4) -> Tensor:
    """Average a grid of patch vectors over ``side`` by ``side`` windows; 16 locals by default.

    The means are not brought back to unit length, as in TCL.

    Args:
        patches: (N, rows * columns, d) unit vectors, row by row, without the class token.
        grid: (rows, columns); None for a square one.
        side: Windows in a row and in a column. They overlap where it does not divide the grid.

    Returns:
        (N, side * side, d).

    Raises:
        ValueError: The patches do not fill the grid.
    """
    count = patches.shape[1]
    rows, columns = grid or (math.isqrt(count),) * 2
    if rows * columns != count:
        raise ValueError(f"{count} patches do not fill a grid of {rows} by {columns}")
    maps = patches.transpose(1, 2).unflatten(2, (rows, columns))
    return functional.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)
