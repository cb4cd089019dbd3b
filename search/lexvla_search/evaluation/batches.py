"""Encode items in batches, and cut vectors to their heaviest words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from tqdm import tqdm

from lexvla.encoding import Encoding

__all__ = ["encode_in_batches", "keep_heaviest"]

_BLOCK = 512  # rows sorted at a time


def encode_in_batches(
    encode: Callable[..., Encoding],
    items: Sequence[Any],
    batch_size: int = 64,
    show_progress_bar: bool | None = False,
    unit: str = "batches",
    active: int | None = None,
    **options: Any,
) -> Encoding:
    """Encode items without their patches, by a method of an encoder.

    `active` keeps at most this many words of each item; `unit` is what the progress bar counts;
    ``show_progress_bar=None`` shows the bar if stderr is a terminal. Options go to the method.
    """
    parts = []
    off = None if show_progress_bar is None else not show_progress_bar
    for at in tqdm(range(0, len(items), batch_size), unit=f" {unit}", disable=off):
        part = encode(list(items[at : at + batch_size]), **options)
        lexical = part.lexical if active is None else keep_heaviest(part.lexical, active)
        parts.append(Encoding(lexical, None, part.codes, part.dense))
    return Encoding.concat(parts)


def keep_heaviest(vectors: sparse.csr_array, kept: int) -> sparse.csr_array:
    """Keep the heaviest words of each (n, V) float32 CSR row; ties keep the lower columns.

    What is kept is scaled back to the vector's length, as a model does.
    """
    # By blocks: sorting takes several times the memory of its input.
    starts = range(0, vectors.shape[0], _BLOCK)
    blocks = [_cut(vectors[at : at + _BLOCK], kept) for at in starts]
    return sparse.csr_array(sparse.vstack(blocks, format="csr"))


def _cut(vectors: sparse.csr_array, kept: int) -> sparse.csr_array:
    counts = np.diff(vectors.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((vectors.indices, -vectors.data, rows))
    place = np.arange(len(rows)) - np.repeat(vectors.indptr[:-1], counts)
    chosen = np.sort(order[place < kept])
    squares = vectors.data.astype(np.float64) ** 2
    whole, left = (np.bincount(rows[of], squares[of], len(counts)) for of in (slice(None), chosen))
    scale = np.sqrt(whole / np.where(left > 0, left, 1))[rows[chosen]]
    starts = np.concatenate([[0], np.minimum(counts, kept).cumsum()])
    data = (vectors.data[chosen] * scale).astype(vectors.dtype)
    parts = data, vectors.indices[chosen], starts
    return sparse.csr_array(parts, shape=vectors.shape)
