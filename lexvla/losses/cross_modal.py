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

    ``q = alpha softmax(teacher keys / tau) + (1 - alpha) y``. No gradient reaches q or the keys.

    Args:
        student: (N, d) unit vectors of one modality, of the global batch.
        teacher: (N, d) teacher's unit vectors of the same items and modality.
        keys: (N + Q, d) teacher's unit vectors of the other modality, then the queue.
        temperature: Shared by TCL's terms, as `InfoNCE.temperature`.
        alpha: Share of the teacher in the targets; see `ramped_alpha`.
        positives: (N, N + Q) bool, keys of the same item, which share y evenly; by default each
            row's own key.

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
    """Return alpha at a step of its linear ramp; TCL ramps within the first epoch."""
    return alpha * min(step / steps, 1.0) if steps > 0 else alpha
