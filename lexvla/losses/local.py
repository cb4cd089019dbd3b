"""Local mutual information: a global vector against patches or tokens (TCL)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from lexvla.losses.precision import dot_products

__all__ = ["local_loss", "pool_patches"]

SHIFT = 1e4  # beyond real logits, which end at 1000 at temperature 0.001


def local_loss(
    student: Tensor,
    locals_: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Contrast an item's own locals with all locals of the other items (TCL, LMI).

    For item n and local l the loss is
    ``-log e^{x_nl g_n / tau} / (e^{x_nl g_n / tau} + sum_{j != n, l'} e^{x_jl' g_n / tau})``,
    averaged over the real locals of each item, then over the items. The item's own other locals are
    not negatives. No gradient reaches the locals.

    Args:
        student: (N, d) unit global vectors g of the global batch.
        locals_: (N, L, d) teacher's locals x, as from `pool_patches`.
        temperature: Shared by TCL's terms, as `InfoNCE.temperature`.
        mask: (N, L) bool, False for padding, which is neither positive nor negative.

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
        # Positive on purpose: padding with a huge positive logit costs nothing.
        positive = positive.masked_fill(~mask, SHIFT)
    negative = scores.flatten(1).logsumexp(dim=1, keepdim=True)
    losses = functional.softplus(negative - positive)
    if mask is None:
        return losses.mean()
    return (losses.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def pool_patches(patches: Tensor, grid: tuple[int, int] | None = None, side: int = 4) -> Tensor:
    """Average patches (N, rows * columns, d) over windows to (N, side * side, d).

    As in TCL, the means are not normalised. Windows overlap if ``side`` does not divide the grid,
    which is (rows, columns), by default square; patches are without the class token.
    """
    count = patches.shape[1]
    rows, columns = grid or (math.isqrt(count),) * 2
    if rows * columns != count:
        raise ValueError(f"{count} patches do not fill a grid of {rows} by {columns}")
    maps = patches.transpose(1, 2).unflatten(2, (rows, columns))
    return functional.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)
