"""Near-identical documents among hits, to be shown as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lexvla.encoding import Encoding
from lexvla_indexer.loading import content_of

if TYPE_CHECKING:
    from lexvla_search.searcher import Hit

__all__ = ["ALIKE", "grouped"]

# Cosine of stored vectors. A photograph that was compressed, halved or cropped by a twentieth stays
# above it, and photographs of different things are below 0.8.
ALIKE = 0.95
_ROUNDING = 1e-6  # of stored float32 values: equal vectors have a cosine of 1
_BLOCK = 256


def grouped(hits: Sequence[Hit], vectors: Encoding, alike: float) -> list[Hit]:
    """Return the first hit of each group of copies, with the ids of the others.

    A hit is a copy of the first one before it that has the same content, or whose dense vector
    (without dense vectors, its words) has a cosine of at least ``alike`` with its own. Ranks are
    counted anew. ``vectors`` are those of the hits, row by row.
    """
    firsts: list[int] = []
    copies: list[list[str]] = []
    group_of: dict[str, int] = {}  # by content
    for row, (hit, cosines) in enumerate(zip(hits, _cosines(vectors), strict=True)):
        content = content_of(hit.document.fingerprint)
        group = group_of.get(content) if content else None
        if group is None and firsts:
            nearest = int(cosines[firsts].argmax())
            group = nearest if cosines[firsts[nearest]] >= alike - _ROUNDING else None
        if group is None:
            group = len(firsts)
            firsts.append(row)
            copies.append([])
        else:
            copies[group].append(hit.id)
        if content:
            group_of.setdefault(content, group)
    return [
        replace(hits[row], rank=rank, copies=tuple(ids))
        for rank, (row, ids) in enumerate(zip(firsts, copies, strict=True), start=1)
    ]


def _cosines(vectors: Encoding) -> Iterator[np.ndarray]:
    """Yield the cosines of each row with itself and all before it, float64; 0 with empty rows."""
    rows: Any = vectors.dense
    rows = vectors.lexical.astype(np.float64) if rows is None else rows.astype(np.float64)
    norms = np.sqrt((rows * rows).sum(axis=1))
    norms[norms == 0] = 1
    for start in range(0, len(vectors), _BLOCK):
        end = start + _BLOCK
        products = rows[start:end] @ rows[:end].T
        made = products if isinstance(products, np.ndarray) else products.toarray()
        yield from made / np.outer(norms[start:end], norms[:end])
