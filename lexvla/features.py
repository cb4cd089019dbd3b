"""What a forward pass gives to the losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Features"]


class Features(NamedTuple):
    """Hold the vectors of a batch of images or of texts.

    Attributes:
        lexical: (B, V) float32 unit vectors of word weights, none of them cut.
        dense: (B, w) float32 unit vectors, or ``None`` where they were not asked for.
        locals: (B, L, w) float32 unit vectors of patches or tokens, or ``None``.
        mask: (B, L) bool, which locals are real, or ``None`` where all are.
        logits: (B, V) of the words, before elu1p, or ``None``.
    """

    lexical: Tensor
    dense: Tensor | None = None
    locals: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None
