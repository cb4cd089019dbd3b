"""Time searches of dense rows by exact scan and by inverted lists, and measure the lists' recall.

    python benchmarks/dense.py [--rows N] [--width D] [--codes K] [--spread S]

Rows are scattered around the centres of codes, and these around fewer topics; some codes have far
more rows than others. A row's codes come from a blurred copy, because a model reads codes and dense
vectors from features by different maps. Queries are rows moved by the distance between rows and
centres. Calls are interleaved, so that other load slows all of them alike: compare ratios rather
than times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from lexvla_indexer.embedded.dense import DenseLeg
from lexvla_indexer.embedded.dense_lists import DenseLists, write_lists

K = 10
QUERIES = 40
CODES_OF_A_ROW = 8
BLUR = 0.3
NPROBES = (1, 8, 32, 64, 128, 256)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def moved(rng: np.random.Generator, rows: np.ndarray, by: float) -> np.ndarray:
    """Return unit rows, each moved by a random vector of length about ``by``."""
    noise = rng.standard_normal(rows.shape, np.float32) / np.sqrt(rows.shape[1])
    return unit(rows + np.float32(by) * noise)


def random_rows(
    rng: np.random.Generator, count: int, width: int, codes: int, spread: float
) -> tuple[np.ndarray, sparse.csr_array]:
    """Return unit rows and their codes."""
    topics = unit(rng.standard_normal((max(codes // 16, 1), width)))
    centres = moved(rng, topics[rng.integers(len(topics), size=codes)], 1.0)
    law = 1 / (np.arange(codes) + codes / 8)
    rows = np.empty((count, width), np.float32)
    columns = np.empty((count, CODES_OF_A_ROW), np.int64)
    weights = np.empty((count, CODES_OF_A_ROW), np.float32)
    for first in range(0, count, 10_000):
        span = slice(first, min(first + 10_000, count))
        own = rng.choice(codes, span.stop - span.start, p=law / law.sum())
        rows[span] = moved(rng, centres[own], spread)
        near = moved(rng, rows[span], BLUR) @ centres.T
        columns[span] = np.sort(np.argpartition(-near, CODES_OF_A_ROW, axis=1)[:, :CODES_OF_A_ROW])
        weights[span] = np.exp(10 * np.take_along_axis(near, columns[span], axis=1))
    starts = np.arange(count + 1) * CODES_OF_A_ROW
    return rows, sparse.csr_array((weights.ravel(), columns.ravel(), starts), shape=(count, codes))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def main() -> None:
    """Build lists of random rows, and print how long searches take and what they find."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--spread", type=float, default=1.0)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows, codes = random_rows(rng, options.rows, options.width, options.codes, options.spread)
    vectors = moved(rng, rows[rng.integers(len(rows), size=QUERIES)], options.spread)
    with tempfile.TemporaryDirectory() as folder:
        built, paths = timed(lambda: write_lists(Path(folder), rows, codes))
        opened, lists = timed(lambda: DenseLists.open(Path(folder), *rows.shape))
        size = sum(path.stat().st_size for path in paths) / 2**20
        print(f"{len(rows):,} rows of {options.width}: {lists.lists} lists, {size:,.0f} MiB")
        print(f"written in {built:.2f} s, opened in {opened * 1e3:.1f} ms")
        report(DenseLeg(rows, lists), lists, vectors, rng.random(len(rows)) < 0.1)


def report(leg: DenseLeg, lists: DenseLists, vectors: np.ndarray, mask: np.ndarray) -> None:
    """Print medians of interleaved searches, and their recall."""
    probes = sorted({n for n in (*NPROBES, lists.nprobe) if n < lists.lists})
    for name, allowed in {"all rows": None, "a tenth of the rows": mask}.items():
        scans: list[float] = []
        took: dict[int, list[float]] = {nprobe: [] for nprobe in probes}
        met = dict.fromkeys(took, 0)
        for number, vector in enumerate(vectors):
            seconds, (_, right) = timed(partial(leg.top, vector, K, allowed, exact=True))
            scans.append(seconds)
            for turn in range(len(probes)):  # rotate the first: the scan fills the cache
                nprobe = probes[(number + turn) % len(probes)]
                seconds, found = timed(partial(leg.top, vector, K, allowed, nprobe=nprobe))
                met[nprobe] += len(np.intersect1d(right, found[1]))
                took[nprobe].append(seconds)
        scan = statistics.median(scans)
        print(f"top {K} of {name}, a query at a time:\n  scan      {scan * 1e3:9.3f} ms")
        for nprobe, times in took.items():
            median, share = statistics.median(times), met[nprobe] / (K * len(vectors))
            default = ", the default" if nprobe == lists.nprobe else ""
            lasts = f"{median * 1e3:9.3f} ms{scan / median:8.1f} x as fast"
            print(f"  {nprobe:4} lists{lasts}, recall {share:.3f}{default}")
    calls = {
        "scan": partial(leg.top_batch, vectors, K, exact=True),
        "lists": partial(leg.top_batch, vectors, K),
    }
    for name, call in calls.items():
        seconds = statistics.median(timed(call)[0] for _ in range(3)) / len(vectors)
        print(f"{len(vectors)} queries at once, {name}: {seconds * 1e3:.3f} ms a query")
    print(f"recall by stored rows: {leg.recall(K):.3f}")


if __name__ == "__main__":
    main()
