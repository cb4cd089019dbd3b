"""Outputs of a forward pass for the losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Features"]


class Features(NamedTuple):
    """Vectors of a batch of images or of texts; ``None`` if not asked for.

    Attributes:
        lexical: (B, V) float32 unit vectors of word weights, not truncated.
        dense: (B, w) float32 unit vectors.
        locals: (B, L, w) float32 unit vectors of patches or tokens.
        mask: (B, L) bool, which locals are real; ``None`` for all.
        logits: (B, V) of the words, before elu1p.
    """

    lexical: Tensor
    dense: Tensor | None = None
    locals: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None
