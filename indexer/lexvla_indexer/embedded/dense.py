"""The dense leg of a segment: the best rows by dot product, by a scan or by inverted lists.

Scores are float64: products of the stored float32 values, which float64 holds exactly, added by
numpy in an order that is the same for every row. A row's score thus depends only on the row and
the query: not on the other rows, the machine, or how the row was found.

Float32 products are fast, but their last bits depend on all of these; a copy of the rows in bytes
is faster still, and less exact. So they only choose the rows to score. Proof that none is missed: a
float32 product of n columns is off by at most ``error``, which is above n times float32's epsilon
times the lengths of both; one of bytes by what `DenseBytes.ask` returns. The k greatest products
belong to rows whose scores are no more than an error below the k-th greatest product. So a row
whose product is more than two errors below it has a lower score than k others, and one more than an
error below 0 has a score below 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lexvla_indexer.embedded.dense_bytes import AskedBytes, DenseBytes
from lexvla_indexer.embedded.dense_lists import DenseLists, longest_of
from lexvla_indexer.embedded.postings import best

__all__ = ["DenseLeg", "Found", "Scan"]

_CHUNK = 1 << 14  # rows at a time: 8 MiB of 128 columns
_QUERIES = 256  # at a time: 16 MiB of products with a chunk of rows
_SPARE = 16  # rows that faiss finds beyond k, so that equal ones are seen
_ROWS_PER_HIT = 32  # the fewest allowed rows to read in lists for each of the k hits
_FLOAT32 = np.finfo(np.float32)

Found = tuple[np.ndarray, np.ndarray]


class Scan(NamedTuple):
    """Hold what reading all rows gave for one query.

    Attributes:
        found: Scores and numbers of the best rows.
        products: (rows) float32: what is near the score of each; -inf for one not to be found.
        error: How far a product can be off; infinite if products are too great for float32.
    """

    found: Found
    products: np.ndarray
    error: float


class DenseLeg:
    """Find the rows of a segment that have the greatest dot products with a vector.

    A search by lists reads the ``nprobe`` lists nearest to the query, and more of them until they
    have as many allowed rows as ``nprobe`` lists have on average, and 32 for each requested hit. Of
    the rows in these lists it returns exactly the best. It scans all allowed rows instead if there
    are no more than that, or if the lists gave fewer than k: a filter makes a search read more
    lists, and never loses hits because too few were read.

    Rows are (rows, width) float32, mapped or not. Without lists every search is a scan. A scan for
    one query reads the copy of the rows in bytes, if there is one.
    """

    def __init__(
        self,
        rows: np.ndarray,
        lists: DenseLists | None = None,
        copy: DenseBytes | None = None,
    ) -> None:
        self.rows, self.lists, self._copy = rows, lists, copy

    def top(
        self,
        vector: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        exact: bool = False,
        nprobe: int | None = None,
    ) -> Found:
        """Return scores and numbers of the k best rows above 0, of equal ones the first.

        ``vector`` is (width) float32; ``allowed``, (rows) bool, says which rows may be found.
        ``exact`` scans the rows although there are lists; ``nprobe`` is how many lists to read, by
        default `DenseLists.nprobe`. OptionalDependencyError if there are lists but no faiss.
        """
        return self.top_batch(np.asarray(vector)[None], k, allowed, exact, nprobe)[0]

    def top_batch(
        self,
        vectors: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        exact: bool = False,
        nprobe: int | None = None,
    ) -> list[Found]:
        """Return what `top` would for each row of (queries, width) vectors, but faster."""
        vectors = self._check(np.asarray(vectors), k, allowed, nprobe)
        answers: list[Found] = []
        for first in range(0, len(vectors), _QUERIES):
            part = vectors[first : first + _QUERIES]
            if self.lists is None or exact:
                answers += self._scan(part, k, allowed)
            else:
                answers += self._search(self.lists, part, k, allowed, nprobe)
        return answers

    def scan(
        self,
        vector: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        floor: float = 0.0,
    ) -> Scan:
        """Return what `top` does with ``exact``, and the products of all rows with the vector.

        Rows that score less than ``floor`` may be left out of what is found.
        """
        vectors = self._check(np.asarray(vector)[None], k, allowed, None)
        products = np.full((1, len(self.rows)), -np.inf, np.float32)
        ((found, error),) = self._scan_near(vectors, k, allowed, products, floor)
        return Scan(found, products[0], error)

    def scores(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return the exact scores of some rows, as `top` gives them."""
        scores = np.empty(len(rows))
        for first in range(0, len(rows), _CHUNK):
            span = slice(first, first + _CHUNK)
            products = np.multiply(self.rows[rows[span]], vector, dtype=np.float64)
            scores[span] = products.sum(axis=1)
        return scores

    def recall(self, k: int = 10, sample: int = 100, nprobe: int | None = None) -> float:
        """Return the share of the k best rows that the lists find, with stored rows as queries.

        Queries are up to ``sample`` rows, evenly spaced. A query does not count among its own hits.
        A row found in place of another of the same score counts as missed.
        """
        if k < 1 or sample < 1:
            raise ValueError(f"k and sample must be at least 1, not {k} and {sample}")
        count = len(self.rows)
        asked = np.linspace(0, count - 1, min(sample, count)).astype(np.int64)
        vectors = self.rows[asked]
        exact = self.top_batch(vectors, k + 1, exact=True)
        answers = self.top_batch(vectors, k + 1, nprobe=nprobe)
        there = met = 0
        for row, *pair in zip(asked, exact, answers, strict=True):
            right, found = (rows[rows != row][:k] for _, rows in pair)
            there, met = there + len(right), met + len(np.intersect1d(right, found))
        return met / there if there else 1.0

    def _check(
        self, vectors: np.ndarray, k: int, allowed: np.ndarray | None, nprobe: int | None
    ) -> np.ndarray:
        count, width = self.rows.shape
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if nprobe is not None and nprobe < 1:
            raise ValueError(f"nprobe must be at least 1, not {nprobe}")
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(f"a query must have {width} columns, not {vectors.shape[1:]}")
        if allowed is not None and (allowed.shape != (count,) or allowed.dtype != np.bool_):
            raise ValueError(f"the mask must be {count} booleans")
        return np.ascontiguousarray(vectors, np.float32)

    def _search(
        self,
        lists: DenseLists,
        vectors: np.ndarray,
        k: int,
        allowed: np.ndarray | None,
        nprobe: int | None,
    ) -> list[Found]:
        nprobe = nprobe or lists.nprobe
        sizes = lists.count(allowed)
        wanted = max(-(-nprobe * lists.rows // lists.lists), _ROWS_PER_HIT * k)
        chosen = lists.choose(vectors, sizes, nprobe, wanted)
        if int(sizes.sum()) <= wanted:
            return self._scan(vectors, k, allowed)
        answers = self._best_of_lists(lists, vectors, k, chosen, allowed)
        short = [i for i, (_, rows) in enumerate(answers) if len(rows) < k]
        if short:
            for i, answer in zip(short, self._scan(vectors[short], k, allowed), strict=True):
                answers[i] = answer
        return answers

    def _best_of_lists(
        self,
        lists: DenseLists,
        vectors: np.ndarray,
        k: int,
        chosen: np.ndarray,
        allowed: np.ndarray | None,
    ) -> list[Found]:
        answers: list[Found] = [_NOTHING] * len(vectors)
        errors, open_queries, asked = self._errors(vectors), np.arange(len(vectors)), k + _SPARE
        while len(open_queries):
            part = vectors[open_queries]
            found = lists.nearest(part, asked, chosen[open_queries], allowed)
            unclear = []
            for i, products, rows in zip(open_queries.tolist(), *found, strict=True):
                # A row that was not found may be as good as the k-th of those that were.
                if rows[-1] >= 0 and not products[-1] < products[k - 1] - 2 * errors[i]:
                    unclear.append(i)
                    continue
                rows = np.unique(rows[rows >= 0])
                answers[i] = _above_zero(self.scores(rows, vectors[i]), rows, k)
            open_queries, asked = np.array(unclear, np.int64), 4 * asked
        return answers

    def _scan(self, vectors: np.ndarray, k: int, allowed: np.ndarray | None) -> list[Found]:
        return [found for found, _ in self._scan_near(vectors, k, allowed, None)]

    def _scan_near(
        self,
        vectors: np.ndarray,
        k: int,
        allowed: np.ndarray | None,
        room: np.ndarray | None,
        floor: float = 0.0,
    ) -> list[tuple[Found, float]]:
        """Return the answer of each query, and how far its products were off at most.

        They are written into ``room``, (queries, rows) float32, if it is given.
        """
        asked = self._copy.ask(vectors[0]) if self._copy and len(vectors) == 1 else None
        errors = self._errors(vectors) if asked is None else np.array([asked.error])
        limits = (floor - errors).tolist()
        near: list[Found] = [_NOTHING] * len(vectors)
        for first, chosen, products in self._products(vectors, allowed, asked):
            if room is not None:
                own_room = room[:, first : first + _CHUNK]
                own_room[:, slice(None) if chosen is None else chosen] = products
            for i, own in enumerate(products):
                places = np.flatnonzero(~(own < limits[i]))  # NaN counts as near
                if not len(places):
                    continue
                scores = np.concatenate([near[i][0], own[places]])
                numbers = first + (places if chosen is None else chosen[places])
                rows = np.concatenate([near[i][1], numbers])
                if len(rows) > k:
                    worst = float(np.partition(scores, -k)[-k])
                    limits[i] = max(limits[i], worst - 2 * float(errors[i]))
                    kept = ~(scores < limits[i])
                    scores, rows = scores[kept], rows[kept]
                near[i] = scores, rows
        return [
            (_above_zero(self.scores(rows, vector), rows, k), error)
            for vector, (_, rows), error in zip(vectors, near, errors.tolist(), strict=True)
        ]

    def _products(
        self, vectors: np.ndarray, allowed: np.ndarray | None, asked: AskedBytes | None
    ) -> Iterator[tuple[int, np.ndarray | None, np.ndarray]]:
        """Yield the queries' products with the allowed rows of each chunk.

        Before them come the chunk's first row, and which of its rows they are: ``None`` for all.
        """
        for first in range(0, len(self.rows), _CHUNK):
            last = min(first + _CHUNK, len(self.rows))
            block, chosen = self.rows[first:last], None
            if allowed is not None:
                chosen = np.flatnonzero(allowed[first:last])
                if 4 * len(chosen) < len(block):  # copying a few is cheaper than multiplying all
                    yield first, chosen, vectors @ block[chosen].T
                    continue
            if asked is not None and self._copy is not None:
                products = self._copy.products(asked, first, last)[None]
            else:
                products = vectors @ block.T
            yield first, chosen, products if chosen is None else products[:, chosen]

    def _errors(self, vectors: np.ndarray) -> np.ndarray:
        """Return how far a float32 product of each query can be off, (queries) float64."""
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        sizes = lengths * self._longest
        # The second part covers numbers so small that they are flushed to 0.
        tiny = float(_FLOAT32.tiny) * (1 + lengths + self._longest)
        errors = (vectors.shape[1] + 2) * (float(_FLOAT32.eps) * sizes + tiny)
        return np.where(sizes < _FLOAT32.max / 2, errors, np.inf)

    @cached_property
    def _longest(self) -> float:
        return longest_of(self.rows) if self.lists is None else self.lists.longest


_NOTHING: Found = (np.empty(0), np.empty(0, np.int64))


def _above_zero(scores: np.ndarray, rows: np.ndarray, k: int) -> Found:
    kept = scores > 0
    return best(scores[kept], rows[kept], k)
