"""From states to lexical vectors: codebook product, max over patches, elu1p, unit length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

__all__ = ["elu1p", "lexical_vector", "max_over_patches", "sparsify"]


def elu1p(logits: Tensor) -> Tensor:
    """Return ``x + 1`` where x >= 0, else ``exp(x)`` (LexVLA eq. 2). Any shape."""
    return functional.elu(logits) + 1


def lexical_vector(logits: Tensor) -> Tensor:
    """Return unit vectors (..., V) of non-negative word weights from logits (LexVLA eqs. 2, 4)."""
    return functional.normalize(elu1p(logits.float()), dim=-1)


class _MaxOverPatches(torch.autograd.Function):
    """Hold the logits of one vocabulary chunk at a time, in both directions.

    Only the arg-max patch of a word gets gradient, so the backward pass needs the (B, V) arg-max
    and never the (B, P, V) logits.
    """

    @staticmethod
    def forward(ctx: Any, patches: Tensor, codebook: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        batch, count, width = patches.shape
        rows = patches.reshape(-1, width)
        values, places = [], []
        for words in codebook.split(chunk):
            best = (rows @ words.T).view(batch, count, -1).max(dim=1)
            values.append(best.values)
            places.append(best.indices.to(torch.int16))
        place = torch.cat(places, dim=1)
        ctx.save_for_backward(patches, codebook, place)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(place)
        return torch.cat(values, dim=1), place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        patches, codebook, place = ctx.saved_tensors
        _, count, width = patches.shape
        rows = patches.reshape(-1, width)
        to_rows = torch.zeros_like(rows)
        to_codebook = torch.empty_like(codebook)
        number = torch.arange(count, dtype=place.dtype, device=place.device)[None, :, None]
        start = 0
        for words in codebook.split(ctx.chunk):
            span = slice(start, start + len(words))
            # Faster than a scatter: on CPUs that of 16-bit floats is slow.
            dense = torch.where(place[:, None, span] == number, gradient[:, None, span], 0)
            dense = dense.view(-1, len(words))
            to_rows += dense @ words
            to_codebook[span] = dense.T @ rows
            start = span.stop
        return to_rows.view_as(patches), to_codebook, None


def max_over_patches(patches: Tensor, codebook: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Multiply patch states with the codebook and keep each word's best patch.

    elu1p is increasing, so taking the maximum before it gives LexVLA eq. 4 at less cost.

    Args:
        patches: (B, P, d) states of the patches.
        codebook: (V, d), one row a word.
        chunk: Words whose (B, P, chunk) logits are in memory at one time.

    Returns:
        (B, V) logits, and (B, V) int16 numbers of the patches that they come from.
    """
    kind = patches.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        patches, codebook = patches.to(dtype), codebook.to(dtype)
    return _MaxOverPatches.apply(patches, codebook, chunk)


def sparsify(
    vectors: Tensor,
    rule: str,
    kept_words: int,
    threshold: float,
    max_active_dims: int | None = None,
) -> sparse.csr_array:
    """Keep the heavy words of unit vectors and return them as (n, V) float32 CSR.

    Args:
        vectors: (n, V), unit length, on any device.
        rule: ``mean`` keeps weights above ``1/sqrt(V)``, the root mean square of a unit vector
            (LexVLA section 4.4); ``top_k`` the largest; ``threshold`` those above a number.
        kept_words: How many words ``top_k`` keeps.
        threshold: The number for ``threshold``.
        max_active_dims: Keep at most so many words of each vector, whatever the rule.

    Raises:
        ValueError: The rule is unknown.
    """
    size = vectors.shape[1]
    if rule == "mean":
        keep = vectors > size**-0.5
    elif rule == "threshold":
        keep = vectors > max(threshold, 0.0)
    elif rule == "top_k":
        keep = vectors > 0
        max_active_dims = min(kept_words, size if max_active_dims is None else max_active_dims)
    else:
        raise ValueError(f"unknown sparsification {rule!r}: use mean, top_k or threshold")
    if max_active_dims is not None and max_active_dims < size:
        best = vectors.topk(max_active_dims, dim=1).indices
        keep &= torch.zeros_like(keep).scatter_(1, best, value=True)
    rows, columns = keep.nonzero(as_tuple=True)
    counts = np.bincount(rows.cpu().numpy(), minlength=len(vectors))
    starts = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    data = vectors[rows, columns].float().cpu().numpy()
    matrix = (data, columns.cpu().numpy().astype(np.int32), starts)
    return sparse.csr_array(matrix, shape=tuple(vectors.shape))
