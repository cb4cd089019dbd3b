"""Many queries of a sparse leg at once, exactly: what `rescoring` does for one of them.

In Python each query would take and release the global lock several times. Threads then wait for
each other longer than they search, so a compiled loop answers all queries of a thread in one call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded import postings as of_postings
from lexvla_indexer.embedded.postings import (
    BLOCK,
    LARGEST_SUM,
    MOST_TERMS,
    NO_MASK,
    Postings,
    aligned,
    read_only,
)
from lexvla_indexer.embedded.rescoring import integer_scale
from lexvla_indexer.embedded.stored_rows import StoredRows
from lexvla_indexer.impacts import ImpactQuantizer

__all__ = ["Batch", "Row", "exact_top_batch"]

Found = tuple[np.ndarray, np.ndarray]


class Row(NamedTuple):
    """One row, of which a search reads what it does of scipy's: that takes long to make."""

    indices: np.ndarray
    data: np.ndarray
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """How many terms it has."""
        return len(self.data)


class Batch(NamedTuple):
    """Hold queries as compressed sparse rows, and their weights as integers.

    Attributes:
        queries: The queries.
        starts: (queries + 1) int64: where the terms of each query start.
        columns: int32: the terms.
        weights: float64, above 0.
        integers: int32: as great as the postings take, so that nearly all of an integer score's
            error is that of the postings. None is 0.
        scales: The integer of a weight of 1, for each query.
        sums: What the weights of each query add up to.
        errors: What rounding changed of them.
    """

    queries: sparse.csr_array
    starts: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    integers: np.ndarray
    scales: np.ndarray
    sums: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, queries: sparse.csr_array) -> Batch:
        """Return (queries, width) float32 above 0, each term of a query once."""
        starts, width = queries.indptr.astype(np.int64), queries.shape[1]
        columns, weights = queries.indices.astype(np.int32), queries.data.astype(np.float64)
        if len(columns) and not 0 <= columns.min() <= columns.max() < width:
            raise ValueError(f"terms must be whole numbers from 0 to {width - 1}")
        lengths = np.diff(starts)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        sums, greatest = np.bincount(owners, weights, len(lengths)), np.zeros(len(lengths))
        np.maximum.at(greatest, owners, weights)
        with np.errstate(divide="ignore"):
            scales = integer_scale(lengths, sums, greatest)
        scales[lengths == 0] = 1
        own = scales[owners]
        integers = np.maximum(np.rint(weights * own), 1)
        errors = np.bincount(owners, np.abs(weights - integers / own), len(lengths))
        parts = starts, columns, weights, integers.astype(np.int32), scales, sums, errors
        return cls(queries, *map(read_only, parts))

    def row(self, number: int) -> Row:
        """Return one query."""
        span = slice(*self.starts[number : number + 2].tolist())
        return Row(self.queries.indices[span], self.queries.data[span], (1, self.queries.shape[1]))

    def shares(self, count: int) -> list[np.ndarray]:
        """Deal the numbers of all queries into shares that take about the same time."""
        longest_first = np.argsort(-np.diff(self.starts), kind="stable")
        return [longest_first[share::count] for share in range(count)]


def exact_top_batch(
    batch: Batch,
    queries: np.ndarray,
    forward: StoredRows,
    quantizer: ImpactQuantizer,
    postings: Postings,
    k: int,
    allowed: np.ndarray | None,
    floors: np.ndarray,
) -> list[Found] | None:
    """Return what `exact_top` does for some queries of a batch; ``None`` if it has to do so.

    ``queries`` are their numbers, int64, and ``floors`` the floor of each.
    """
    loops = of_postings.kernels(len(postings.impacts))
    if loops is None or quantizer.drop_zero or not postings.rows:
        return None
    from lexvla_indexer.embedded.batch_kernels import answer

    unit = quantizer.step / batch.scales[queries]
    bounds = quantizer.moved * batch.sums[queries] + quantizer.top * batch.errors[queries]
    bounds *= 1 + 1e-9
    margins = np.minimum(np.ceil(2 * bounds / unit) + 1, LARGEST_SUM)
    starts = np.floor((floors - bounds) / unit) + margins
    starts = np.where(floors > 0, np.clip(starts, 0, LARGEST_SUM), 0)
    limits = margins.astype(np.int64), starts.astype(np.int64), unit, bounds
    counts, rows, scores, sound = answer(
        queries,
        (batch.starts, batch.columns, batch.integers),
        batch.weights,
        limits,
        k,
        postings.rows,
        (postings.blocks, postings.terms, postings.starts, postings.ids, postings.impacts),
        tuple(postings.bitmaps),
        read_only(NO_MASK if allowed is None else np.ascontiguousarray(allowed)),
        aligned(BLOCK),
        MOST_TERMS if len(postings.bitmaps.frequent) else -1,
        (read_only(forward.mapped.indptr), read_only(forward.entries.mapped)),
        forward.entries.file,
        forward.few,
        np.zeros(postings.width),
    )
    if not sound:
        raise IndexCorruptError("a stored row is damaged")
    owners = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((rows, -scores, owners))
    ends = np.cumsum(counts)
    answers = []
    for first, last in zip((ends - counts).tolist(), ends.tolist(), strict=True):
        own = order[first : min(first + k, last)]
        answers.append((scores[own], rows[own]))
    return answers
