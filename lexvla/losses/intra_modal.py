"""Intra-modal contrast with a momentum teacher's view of the same item (TCL)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lexvla.losses.precision import dot_products

__all__ = ["intra_modal_loss"]


def intra_modal_loss(
    student: Tensor,
    keys: Tensor,
    temperature: float | Tensor,
    positives: Tensor | None = None,
) -> Tensor:
    """Return the cross entropy of ``softmax(student keys / tau)`` with each row's own key.

    Targets are hard, without a teacher's share (TCL, IMC). No gradient reaches the keys.

    Args:
        student: (N, d) unit vectors of one view, of the global batch.
        keys: (N + Q, d) teacher's unit vectors of the other views, then the queue.
        temperature: Shared by TCL's terms, as `InfoNCE.temperature`.
        positives: (N, N + Q) bool, keys of the same item, which share the target evenly; by
            default each row's own key.

    References:
        Yang et al. 2022 (TCL), arXiv 2202.10401.
    """
    logits = dot_products(student, keys.detach()) / temperature
    if positives is None:
        own = torch.arange(len(student), device=student.device)
        return functional.cross_entropy(logits, own)
    shares = positives.to(logits.dtype)
    return functional.cross_entropy(logits, shares / shares.sum(dim=1, keepdim=True))
