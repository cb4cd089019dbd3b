"""Cross-modal alignment with soft targets from a momentum teacher (TCL)."""

from __future__ import annotations

import torch
from torch import Tensor

from lexvla.losses.precision import dot_products

__all__ = ["cross_modal_loss", "ramped_alpha"]


def cross_modal_loss(
    student: Tensor,
    teacher: Tensor,
    keys: Tensor,
    temperature: float | Tensor,
    alpha: float = 0.4,
    positives: Tensor | None = None,
) -> Tensor:
    """Return ``-mean sum q log softmax(student keys / tau)``, one direction (TCL, CMA).

    ``q = alpha softmax(teacher keys / tau) + (1 - alpha) y``: the teacher may find that other keys
    fit as well. No gradient reaches the targets or the keys.

    Args:
        student: (N, d) unit vectors of one modality. N is the global batch: gather the rows of all
            processes first.
        teacher: (N, d) the teacher's unit vectors of the same items and modality.
        keys: (N + Q, d) the teacher's unit vectors of the other modality: row i is item i's; then
            the queue.
        temperature: One for all of TCL's terms, such as `InfoNCE.temperature`.
        alpha: Share of the teacher in the targets; see `ramped_alpha`.
        positives: (N, N + Q) bool, the keys of the same item, which share y evenly (fine-tuning,
            where an item has several). None: each row's own key.

    References:
        Yang et al. 2022, "Vision-Language Pre-Training with Triple Contrastive Learning",
        arXiv 2202.10401; the soft targets are those of ALBEF, arXiv 2107.07651.
    """
    keys = keys.detach()
    logits = dot_products(student, keys) / temperature
    with torch.no_grad():
        soft = (dot_products(teacher, keys) / temperature).softmax(dim=1)
        if positives is None:
            hard = torch.eye(*soft.shape, dtype=soft.dtype, device=soft.device)
        else:
            hard = positives.to(soft.dtype)
            hard = hard / hard.sum(dim=1, keepdim=True)
        targets = alpha * soft + (1 - alpha) * hard
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def ramped_alpha(step: int, steps: int, alpha: float = 0.4) -> float:
    """Return alpha's part after ``step`` of the ``steps`` that its linear ramp takes.

    TCL ramps from 0 within the first epoch: early on, the teacher knows nothing.
    """
    return alpha * min(step / steps, 1.0) if steps > 0 else alpha
