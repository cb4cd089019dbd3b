"""Time searches of postings: compiled loops, numpy, and scipy's columns, in one process.

    python benchmarks/postings.py [--documents N] [--width V] [--words W]

Documents have distinct words drawn by Zipf's law, and log-normal weights. Calls are interleaved, so
that other load slows all of them alike: compare ratios rather than times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from engine_contenders import without_numba
from scipy import sparse

from lexvla_indexer.embedded.postings import Postings, best, build, kernels
from lexvla_indexer.embedded.rescoring import exact_top
from lexvla_indexer.impacts import ImpactQuantizer

K = 10
QUERIES = 20
QUERY_WORDS = (20, 150)


def random_documents(
    rng: np.random.Generator, rows: int, width: int, words: int
) -> sparse.csr_array:
    """Return unit float32 rows of about ``words`` words."""
    law = np.cumsum(1 / (np.arange(width) + 10))
    parts = []
    for first in range(0, rows, 10_000):
        count = min(10_000, rows - first)
        # Duplicates count once: draw some more.
        columns = np.searchsorted(law, rng.random((count, words * 11 // 10)) * law[-1])
        cells = np.unique(columns + np.arange(count)[:, None] * width)
        weights = np.exp(rng.normal(-2, 0.7, len(cells))).astype(np.float32)
        lengths = np.bincount(cells // width, minlength=count)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        weights /= np.sqrt(np.add.reduceat(weights**2, starts[:-1])).repeat(lengths)
        parts.append(sparse.csr_array((weights, cells % width, starts), shape=(count, width)))
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def random_query(rng: np.random.Generator, width: int, words: int) -> sparse.csr_array:
    """Return a unit row of ``words`` words, drawn like documents."""
    law = 1 / (np.arange(width) + 10)
    columns = np.sort(rng.choice(width, words, replace=False, p=law / law.sum()))
    weights = np.exp(rng.normal(-2, 0.7, words)).astype(np.float32)
    weights /= np.linalg.norm(weights)
    return sparse.csr_array((weights, columns, [0, words]), shape=(1, width))


def by_scipy(columns: sparse.csc_array, query: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Return the best rows by float sums over the columns of the query's words."""
    picked = columns[:, query.indices]
    scores = picked @ query.data
    return best(scores, np.arange(len(scores)), K)


def by_postings(postings: Postings, query: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Return the best rows by integers."""
    weights = np.maximum(np.rint(query.data / query.data.max() * 255), 1).astype(np.int32)
    return postings.top(query.indices, weights, K)


def timed(call: Callable[[], Any], context: AbstractContextManager[Any] | None = None) -> float:
    """Return the seconds of a call."""
    with context or nullcontext():
        started = time.perf_counter()
        call()
        return time.perf_counter() - started


def main() -> None:
    """Build postings of random documents, and print how long building and searching take."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=32_000)
    parser.add_argument("--words", type=int, default=125)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    stored = random_documents(rng, options.documents, options.width, options.words)
    quantizer = ImpactQuantizer.fit(stored)
    impacts = quantizer.quantize(stored)
    compiled = kernels() is not None
    if compiled:
        build(impacts[:100])  # compiles
    else:
        print("numba is not installed: only numpy and scipy are timed")
    postings = build(impacts)
    size = sum(a.nbytes for a in vars(postings).values() if isinstance(a, np.ndarray))
    words = stored.nnz / options.documents
    print(f"{options.documents:,} documents of {words:.0f} words, {size / 2**20:,.0f} MiB")
    for name, context in {"numba": nullcontext(), "numpy": without_numba()}.items():
        if compiled or name != "numba":
            seconds = timed(lambda: build(impacts), context)
            print(f"build, {name}: {options.documents / seconds:,.0f} documents a second")
    columns = stored.tocsc()
    for count in QUERY_WORDS:
        took: dict[str, list[float]] = {"numba": [], "exact": [], "numpy": [], "scipy": []}
        for number in range(QUERIES + 1):
            query = random_query(rng, options.width, count)
            calls = {
                "numpy": timed(lambda q=query: by_postings(postings, q), without_numba()),
                "scipy": timed(lambda q=query: by_scipy(columns, q)),
            }
            if compiled:
                calls["numba"] = timed(lambda q=query: by_postings(postings, q))
                calls["exact"] = timed(lambda q=query: exact_top(q, stored, quantizer, postings, K))
            if number:  # the first one is a warm-up
                for name, seconds in calls.items():
                    took[name].append(seconds)
        medians = {name: statistics.median(times) for name, times in took.items() if times}
        least = min(medians.values())
        print(f"top {K} by {count} words:")
        for name, median in medians.items():
            print(f"  {name:6}{median * 1e3:9.3f} ms{median / least:8.1f} x")


if __name__ == "__main__":
    main()
