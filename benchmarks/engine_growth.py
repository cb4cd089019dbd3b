"""Growth of the embedded engine's time with documents, compared with memory speed."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from engine_checks import BruteForce, check_contender, copy_speed, take_turns
from engine_contenders import POSTING_BYTES, K, of_index
from engine_data import Corpus, described
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer import Index, open_index
from lexvla_indexer.embedded.postings import kernels

CHUNK = 1_000_000  # documents of a commit, and the most that are in memory
SIZES = (10_000, 31_623, 100_000, 316_228, 1_000_000, 3_162_278, 10_000_000)


class Effort(NamedTuple):
    """The extent of a measurement.

    Attributes:
        queries: Number of queries of each length.
        checked: Number of them that are checked by brute force.
        seconds: Time for each length and engine.
    """

    queries: int
    checked: int
    seconds: float


class Asked(NamedTuple):
    """Queries of one length, with true answers to the first of them."""

    words: int
    queries: sparse.csr_array
    brute_force: BruteForce


class Growing:
    """Fill an index with documents, and keep the true answers.

    Args:
        folder: New folder of the index, deleted on exit.
        corpus: Generator of documents.
        query_words: Lengths of queries.
        effort: Extent of the measurement.
    """

    def __init__(
        self, folder: Path, corpus: Corpus, query_words: Sequence[int], effort: Effort
    ) -> None:
        self._folder, self._corpus, self._effort = folder, corpus, effort
        self._index: Index = open_index(str(folder), create=True)
        self._frequencies = np.zeros(corpus.width, np.int64)
        self._asked = []
        for words in query_words:
            queries = corpus.queries(effort.queries, words)
            self._asked.append(Asked(words, queries, BruteForce(queries[: effort.checked], K)))
        self.documents, self.seconds = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._index.close()
        shutil.rmtree(self._folder)

    def grow(self, size: int) -> None:
        """Add documents up to a number, with a commit for each chunk."""
        while self.documents < size:
            last = min(self.documents + CHUNK, size)
            rows = self._corpus.documents(self.documents, last)
            documents = described(self.documents, last)
            started = time.perf_counter()
            self._index.add(documents, Encoding(rows))
            self._index.commit()
            self.seconds += time.perf_counter() - started
            self._frequencies += np.bincount(rows.indices, minlength=self._corpus.width)
            for asked in self._asked:
                asked.brute_force.add(rows)
            self.documents = last
            note = f"{last:,} documents; adding them took {self.seconds:.1f} s"
            print(note, file=sys.stderr)

    def measure(self, speed: float) -> list[dict[str, Any]]:
        """Check and time queries of each length; ``speed`` is that of `copy_speed`."""
        return [self._measure(asked, speed) for asked in self._asked]

    def _measure(self, asked: Asked, speed: float) -> dict[str, Any]:
        exact = of_index("exact", self._index, asked.queries)
        # Each segment's integers have a scale of their own: no one brute force gives them all.
        rough = of_index("integers", self._index, asked.queries, exact=False)
        rough = rough._replace(exact=False, truth="floats")
        truth = asked.brute_force.answers
        found = [check_contender(contender, truth) for contender in (exact, rough)]
        times = take_turns([exact, rough], asked.queries.shape[0], self._effort.seconds)
        p50, p50_integers = (statistics.median(taken) * 1e3 for taken in times)
        starts = asked.queries.indptr[:-1]
        postings = np.add.reduceat(self._frequencies[asked.queries.indices], starts)
        floor = float(np.median(postings)) * POSTING_BYTES / speed * 1e3
        return {
            "documents": self.documents,
            "words": asked.words,
            "segments": self._index.info()["segments"],
            "documents_a_second": self.documents / self.seconds,
            "equal": found[0]["equal"],
            "checked": len(truth),
            "recall_integers": found[1]["recall"],
            "postings": float(np.median(postings)),
            "floor_ms": floor,
            "p50_ms": p50,
            "p50_integers_ms": p50_integers,
            "times_floor": p50 / floor,
        }


def grow(
    directory: Path,
    corpus: Corpus,
    query_words: Sequence[int],
    sizes: Sequence[int],
    effort: Effort,
) -> Iterator[dict[str, Any]]:
    """Yield the figures of all sizes so far, after each size.

    Sizes up to a chunk have their own index of one commit; the largest of these grows on by a
    commit for each chunk. ``sizes`` are ascending.
    """
    kernels()  # so that small numbers of documents are searched by compiled loops too
    speed = copy_speed()
    rows: list[dict[str, Any]] = []
    groups = [[size] for size in sizes if size <= CHUNK] or [[]]
    groups[-1] += [size for size in sizes if size > CHUNK]
    for group in groups:
        with Growing(directory / f"growth-{group[0]}", corpus, query_words, effort) as growing:
            for size in group:
                growing.grow(size)
                rows += growing.measure(speed)
                yield {"copy_gb_s": speed / 1e9, "rows": rows}
