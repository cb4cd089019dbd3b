"""Time searches of dense rows by exact scan and by inverted lists, and measure the lists' recall.

    python benchmarks/dense.py [--rows N] [--width D] [--codes K] [--spread S]

Searches by words and dense vectors together are timed beside scipy and numpy, which score all rows
in float32, and their answers compared.

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

from lexvla.encoding import Encoding
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.embedded.dense import DenseLeg
from lexvla_indexer.embedded.dense_lists import DenseLists, write_lists
from lexvla_indexer.embedded.segment import Segment, write_segment
from lexvla_indexer.embedded.weighted_sum import best_by_sum

K = 10
QUERIES = 40
CODES_OF_A_ROW = 8
BLUR = 0.3
DEPTH = 100  # how many rows a hybrid search finds by each leg
WORDS, WORDS_OF_A_ROW, WORDS_OF_A_QUERY = 5720, 40, 13
WEIGHTS = {"lexical": 0.5, "dense": 0.5}
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
    with tempfile.TemporaryDirectory() as folder:
        report_hybrid(Path(folder) / "segment", rng, rows, codes, vectors)


def random_words(rng: np.random.Generator, codes: sparse.csr_array) -> sparse.csr_array:
    """Return a unit row of words for each row of codes, most of them words of its heaviest code."""
    heaviest = codes.argmax(axis=1)
    own = np.random.default_rng(1).integers(WORDS, size=(codes.shape[1], 2 * WORDS_OF_A_ROW))
    places = rng.integers(2 * WORDS_OF_A_ROW, size=(codes.shape[0], WORDS_OF_A_ROW))
    columns = np.where(
        rng.random(places.shape) < 0.7,
        own[np.asarray(heaviest).reshape(-1, 1), places],
        (WORDS * rng.random(places.shape) ** 3).astype(np.int64),
    )
    owners = np.repeat(np.arange(len(places)), WORDS_OF_A_ROW)
    cells = np.unique(owners * WORDS + columns.ravel())
    values = rng.gamma(1.0, 1.0, len(cells)).astype(np.float32) + np.float32(1e-3)
    starts = np.searchsorted(cells, np.arange(len(places) + 1) * WORDS)
    lengths = np.sqrt(np.add.reduceat(values**2, starts[:-1]))
    values /= np.repeat(lengths, np.diff(starts))
    return sparse.csr_array((values, cells % WORDS, starts), shape=(len(places), WORDS))


def report_hybrid(
    folder: Path,
    rng: np.random.Generator,
    rows: np.ndarray,
    codes: sparse.csr_array,
    vectors: np.ndarray,
) -> None:
    """Print how long a search by words and vectors takes, beside scoring all rows in float32."""
    words = random_words(rng, codes)
    names = [f"d{i:08}" for i in range(len(rows))]
    encoding = Encoding(words, None, None, rows)
    checksum = write_segment(folder, names, encoding, TextRows.of([""] * len(rows)))
    segment = Segment(folder, len(rows), {"lexical": WORDS, "dense": rows.shape[1]}, checksum)
    columns, own, other = words.tocsc(), [], []
    for number, vector in enumerate(vectors):
        like = int(np.argmax(rows @ vector))
        span = slice(*words.indptr[[like, like + 1]].tolist())
        heavy = np.sort(np.argsort(-words.data[span], kind="stable")[:WORDS_OF_A_QUERY])
        parts = words.data[span][heavy], words.indices[span][heavy], [0, len(heavy)]
        asked = {"lexical": sparse.csr_array(parts, shape=(1, WORDS)), "dense": vector}
        search = partial(best_by_sum, segment, asked, WEIGHTS, K, DEPTH, None)
        force = partial(by_force, columns, rows, asked)
        if number == 0:
            search()  # loads what is compiled
        seconds, (_, scores) = timed(search)
        own.append(seconds)
        seconds, total = timed(force)
        other.append(seconds)
        exact = sum(weight * np.maximum(scores[leg], 0) for leg, weight in WEIGHTS.items())
        right = np.partition(total, -K)[-K:]
        if not np.allclose(np.sort(exact)[-K:], np.sort(right), atol=1e-5):
            raise SystemExit(f"query {number}: other rows than those of brute force")
    mine, theirs = statistics.median(own), statistics.median(other)
    print(f"top {K} by words and vectors, and {DEPTH} by each, a query at a time:")
    print(f"  all rows by scipy and numpy{theirs * 1e3:9.3f} ms")
    print(f"  best_by_sum                {mine * 1e3:9.3f} ms{theirs / mine:8.1f} x as fast")


def by_force(columns: sparse.csc_array, rows: np.ndarray, asked: dict[str, Any]) -> np.ndarray:
    """Return the sums of all rows, (rows) float32, having chosen the best by each list of them."""
    query = asked["lexical"]
    lexical = columns[:, query.indices] @ query.data
    dense = np.maximum(rows @ asked["dense"], 0)
    total = WEIGHTS["lexical"] * lexical + WEIGHTS["dense"] * dense
    for scores, most in ((total, K), (lexical, DEPTH), (dense, DEPTH)):
        np.argpartition(scores, -most)[-most:]
    return total


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
