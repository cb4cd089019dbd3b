"""Near-identical documents among hits, to be shown as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lexvla.encoding import Encoding
from lexvla_indexer.fingerprint import content_of

__all__ = ["ALIKE", "group_copies"]

# Cosine of stored vectors. Photographs that were compressed or halved stay above it, and those of
# different things are far below (benchmarks/copies.py).
ALIKE = 0.95
_ROUNDING = 1e-6  # of stored float32 values: equal vectors have a cosine of 1
_BLOCK = 256


def group_copies(fingerprints: Sequence[str], vectors: Encoding, alike: float) -> list[list[int]]:
    """Return groups of hits' row numbers, each and all in the order of the hits.

    A hit is a copy of a group's first one if both have the same content, by their fingerprints,
    or if the cosine of their dense vectors (without these, of their words) is at least ``alike``.
    """
    groups: list[list[int]] = []
    firsts: list[int] = []
    group_of: dict[str, int] = {}  # by content
    for row, (fingerprint, cosines) in enumerate(zip(fingerprints, _cosines(vectors), strict=True)):
        content = content_of(fingerprint)
        group = group_of.get(content) if content else None
        if group is None and firsts:
            nearest = int(cosines[firsts].argmax())
            group = nearest if cosines[firsts[nearest]] >= alike - _ROUNDING else None
        if group is None:
            group = len(firsts)
            firsts.append(row)
            groups.append([])
        groups[group].append(row)
        if content:
            group_of.setdefault(content, group)
    return groups


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
