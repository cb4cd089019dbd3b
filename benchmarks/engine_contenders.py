"""The compared engines, each through its Python interface.

For engines of integers, query weights are integers from 1 to 255, and all document weights come
from the same `ImpactQuantizer`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
from engine_checks import Answer, BruteForce, Contender, WrongAnswerError
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer.base import Index
from lexvla_indexer.embedded.postings import LARGEST_SUM, LARGEST_WEIGHT, best
from lexvla_indexer.impacts import ImpactQuantizer

K = 10
POSTING_BYTES = 3  # a row of two bytes, an impact of one
SEISMIC = {"query_cut": 10, "heap_factor": 0.8}


def small_integers(queries: sparse.csr_array) -> sparse.csr_array:
    """Return queries with integer weights from 1 to 255, the greatest of each being 255."""
    lengths = np.diff(queries.indptr)
    greatest = np.maximum.reduceat(queries.data, queries.indptr[:-1]).repeat(lengths)
    weights = np.maximum(np.rint(queries.data / greatest * 255), 1).astype(np.int32)
    return sparse.csr_array((weights, queries.indices, queries.indptr), shape=queries.shape)


def large_integers(queries: sparse.csr_array) -> tuple[sparse.csr_array, np.ndarray]:
    """Return queries with the greatest integers that the embedded engine takes, and their scales.

    The embedded engine's integer answers use these weights.
    """
    lengths = np.diff(queries.indptr)
    weights = queries.data.astype(np.float64)
    starts = queries.indptr[:-1]
    scales = (LARGEST_SUM // 255 - lengths - 1) / np.add.reduceat(weights, starts)
    scales = np.minimum(scales, LARGEST_WEIGHT / np.maximum.reduceat(weights, starts))
    integers = np.maximum(np.rint(weights * scales.repeat(lengths)), 1)
    matrix = sparse.csr_array((integers, queries.indices, queries.indptr), shape=queries.shape)
    return matrix, scales


def truths(
    stored: sparse.csr_array,
    impacts: sparse.csr_array,
    quantizer: ImpactQuantizer,
    queries: sparse.csr_array,
) -> dict[str, list[Answer]]:
    """Return the true answers by floats, and by both kinds of integers."""
    found = {}
    large, scales = large_integers(queries)
    small = small_integers(queries)
    kinds = {"floats": (stored, queries), "small": (impacts, small), "large": (impacts, large)}
    for kind, (rows, asked) in kinds.items():
        brute_force = BruteForce(asked, K)
        brute_force.add(rows)
        found[kind] = brute_force.answers
    steps = quantizer.step / scales
    answers = zip(found["large"], steps, strict=True)
    found["large"] = [(rows, scores * step) for (rows, scores), step in answers]
    return found


@contextmanager
def without_numba() -> Iterator[None]:
    """Search as without numba."""
    with (
        mock.patch("lexvla_indexer.embedded.postings.kernels", lambda *_: None),
        mock.patch("lexvla_indexer.embedded.rescoring.kernels", lambda *_: None),
        mock.patch("lexvla_indexer.embedded.stored_rows.kernels", lambda *_: None),
    ):
        yield


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Answer long queries on one thread too."""
    with mock.patch("lexvla_indexer.embedded.reader.THREADS", 1):
        yield


@contextmanager
def without_skipping() -> Iterator[None]:
    """Search on one thread, without skipping rows."""
    with on_one_thread(), mock.patch("lexvla_indexer.embedded.postings.MOST_TERMS", 0):
        yield


def of_index(name: str, index: Index, queries: sparse.csr_array, **settings: Any) -> Contender:
    """Return an index of this package as a contender."""
    asked = [Encoding(queries[i : i + 1]) for i in range(queries.shape[0])]

    def read(results: Any) -> Answer:
        return np.array([int(name) for name in results[0].ids], np.int64), results[0].scores

    exact = settings.get("exact", True)
    return Contender(
        name,
        lambda number: index.search(asked[number], K, **settings),
        read,
        "floats" if exact else "large",
        exact=True,
        tolerance=0.0 if exact else 1e-12,
        around=on_one_thread,
    )


def embedded(index: Index, queries: sparse.csr_array) -> list[Contender]:
    """Return the embedded engine: exact, by integers, on all threads, without skipping or numba."""
    exact = of_index("embedded, exact", index, queries)
    integers = of_index("embedded, integers", index, queries, exact=False)
    return [
        exact,
        integers,
        exact._replace(name="embedded, exact, all threads", around=nullcontext),
        exact._replace(name="embedded, exact, without skipping", around=without_skipping),
        exact._replace(name="embedded, exact, without numba", around=without_numba),
        integers._replace(name="embedded, integers, without numba", around=without_numba),
    ]


def batch(index: Index, queries: sparse.csr_array, rounds: int = 9) -> dict[str, float]:
    """Return milliseconds a query of all queries together on all threads, and one after another.

    They take turns; these are medians. WrongAnswerError if the answers differ.
    """
    rows, every = [Encoding(queries[i : i + 1]) for i in range(queries.shape[0])], Encoding(queries)
    times: dict[str, list[float]] = {"alone_ms": [], "together_ms": []}
    for _ in range(rounds):
        with on_one_thread():
            started = time.perf_counter()
            alone = [index.search(row, K)[0] for row in rows]
            times["alone_ms"].append(time.perf_counter() - started)
        started = time.perf_counter()
        together = index.search(every, K)
        times["together_ms"].append(time.perf_counter() - started)
        for one, other in zip(alone, together, strict=True):
            if one.ids != other.ids or not np.array_equal(one.scores, other.scores):
                raise WrongAnswerError("a query of a batch: not what it finds alone")
    scale = 1e3 / len(rows)
    return {name: statistics.median(taken) * scale for name, taken in times.items()}


class ByScipy:
    """Sum the columns of the query's words with scipy; integers are stored as float32."""

    def __init__(self, impacts: sparse.csr_array) -> None:
        started = time.perf_counter()
        self._columns = impacts.astype(np.float32).tocsc()
        arrays = self._columns.data, self._columns.indices, self._columns.indptr
        self.facts = {
            "build_s": time.perf_counter() - started,
            "bytes": sum(array.nbytes for array in arrays),
        }

    def contenders(self, queries: sparse.csr_array) -> list[Contender]:
        """Return the engine with prepared queries."""
        numbers = np.arange(self._columns.shape[0])
        small = small_integers(queries)
        spans = [slice(*small.indptr[i : i + 2].tolist()) for i in range(small.shape[0])]
        rows = [(small.indices[span], small.data[span].astype(np.float32)) for span in spans]

        def ask(number: int) -> Answer:
            words, weights = rows[number]
            scores, found = best(self._columns[:, words] @ weights, numbers, K)
            return found[scores > 0], scores[scores > 0]

        return [Contender("scipy, columns", ask, lambda answer: answer, "small", exact=True)]


class BySeismic:
    """Seismic, which is approximate, by its Python package `pyseismic-lsr`."""

    def __init__(self, stored: sparse.csr_array, n_postings: int, threads: int = 0) -> None:
        import seismic

        self._string = seismic.get_seismic_string()
        self._n_postings = n_postings
        dataset = seismic.SeismicDataset(stored.shape[1])
        names = [str(row) for row in range(stored.shape[0])]
        offsets, columns = stored.indptr.astype(np.int64), stored.indices.astype(np.int64)
        started = time.perf_counter()
        dataset.add_documents_by_id(names, columns, stored.data, offsets)
        self._index = seismic.SeismicIndex.build_from_dataset(
            dataset, n_postings=n_postings, num_threads=threads
        )
        self.facts = {"build_s": time.perf_counter() - started}

    def contenders(self, queries: sparse.csr_array) -> list[Contender]:
        """Return the engine with prepared queries."""
        asked = []
        for i in range(queries.shape[0]):
            row = queries[i : i + 1]
            asked.append((row.indices.astype(str).astype(self._string), row.data))

        def ask(number: int) -> Any:
            return self._index.search("", *asked[number], K, **SEISMIC)

        def read(hits: Any) -> Answer:
            rows = np.array([int(hit[2]) for hit in hits], np.int64)
            return rows, np.array([hit[1] for hit in hits], np.float64)

        name = f"Seismic, n_postings {self._n_postings}"
        return [Contender(name, ask, read, "floats", exact=False)]
