"""Generated vectors to time engines with; `real_vectors.py` has those of a model.

Generated documents have topics. Half of a document's words are drawn by Zipf's law from all words,
half from the words of its two topics, each with its own Zipf's law; weights are log-normal, and
rows of unit length. Queries are drawn like documents, so their words are common in documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

from lexvla_indexer import Document

BLOCK = 10_000  # documents that are drawn together: any range of them can be had without the rest
TOPICS = 400
TOPIC_SHARE = 1 / 64  # of all words
SPREAD = 0.7  # of the logarithms of weights
_COMMON, _TOPICAL = 1 << 20, 1 << 12  # entries of the tables that words are looked up in


class Shape(NamedTuple):
    """Numbers of words: in total, in a document, and in each kind of query."""

    width: int
    words: int
    query_words: tuple[int, ...]


SHAPES = {
    "million": Shape(32_000, 125, (20, 150)),
    "shape": Shape(17_149, 300, (300,)),
}


class Corpus:
    """Generate documents and queries from a seed.

    Args:
        width: Number of words in total.
        words: Mean number of words in a document.
        seed: Seed of the corpus.
    """

    def __init__(self, width: int, words: int, seed: int = 0) -> None:
        self.width, self.words, self.seed = width, words, seed
        rng = np.random.default_rng([seed, 0])
        self._common = _by_law(np.arange(width), _COMMON)
        size = max(round(width * TOPIC_SHARE), min(width, words))
        topics = [rng.choice(width, size, replace=False) for _ in range(TOPICS)]
        self._topical = np.stack([_by_law(topic, _TOPICAL) for topic in topics])
        self._draws = self._enough(rng)

    def _enough(self, rng: np.random.Generator) -> int:
        """Return how many words to draw, with duplicates, for the wanted number."""
        if self.words >= self.width // 2:
            raise ValueError(f"{self.words} of {self.width} words are too many for a document")
        draws = 8 * self.words
        columns = rng.permuted(self._draw(rng, 200, draws), axis=1)
        distinct = np.mean([np.isin(np.arange(draws), _firsts(row)) for row in columns], axis=0)
        return int(np.searchsorted(np.cumsum(distinct), self.words)) + 1

    def documents(self, first: int, last: int) -> sparse.csr_array:
        """Return documents by number: float32 unit rows."""
        return sparse.csr_array(sparse.vstack(list(self._blocks(first, last)), format="csr"))

    def _blocks(self, first: int, last: int) -> Iterator[sparse.csr_array]:
        for start in range(first - first % BLOCK, last, BLOCK):
            rng = np.random.default_rng([self.seed, 1, start // BLOCK])
            columns = self._draw(rng, BLOCK, self._draws)
            rows = _unit_rows(rng, columns, self.width)
            yield rows[max(first - start, 0) : min(last - start, BLOCK)]

    def queries(self, count: int, words: int) -> sparse.csr_array:
        """Return queries of ``words`` words each: float32 unit rows."""
        rng = np.random.default_rng([self.seed, 2, words])
        rows = []
        for _ in range(count):
            drawn = _firsts_of(rng.permuted(self._draw(rng, 1, 8 * words)[0]))
            while len(drawn) < words:
                more = rng.permuted(self._draw(rng, 1, 8 * words)[0])
                drawn = _firsts_of(np.concatenate([drawn, more]))
            rows.append(drawn[:words])
        return _unit_rows(rng, np.array(rows, np.int32), self.width)

    def _draw(self, rng: np.random.Generator, rows: int, draws: int) -> np.ndarray:
        """Return (rows, draws) words, with duplicates."""
        half = draws - draws // 2
        common = self._common[rng.integers(0, _COMMON, (rows, half), np.int32)]
        topics = rng.integers(0, TOPICS, (rows, 2))
        topics = topics.repeat((draws // 2 + 1) // 2, axis=1)[:, : draws // 2]
        places = rng.integers(0, _TOPICAL, topics.shape, np.int32)
        return np.hstack([common, self._topical[topics, places]])


def _by_law(words: np.ndarray, entries: int) -> np.ndarray:
    """Return a table with words as often as they are drawn: a random lookup is a draw."""
    law = np.cumsum(1 / (np.arange(len(words)) + 10))
    places = np.searchsorted(law, (np.arange(entries) + 0.5) / entries * law[-1])
    return words[places].astype(np.int32)


def _firsts(drawn: np.ndarray) -> np.ndarray:
    return np.sort(np.unique(drawn, return_index=True)[1])


def _firsts_of(drawn: np.ndarray) -> np.ndarray:
    return drawn[_firsts(drawn)]


def _unit_rows(rng: np.random.Generator, columns: np.ndarray, width: int) -> sparse.csr_array:
    """Return unit rows of these words, without duplicates, with log-normal weights."""
    columns.sort(axis=1)
    kept = np.ones(columns.shape, np.bool_)
    np.not_equal(columns[:, 1:], columns[:, :-1], out=kept[:, 1:])
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    weights = np.exp(SPREAD * rng.standard_normal(starts[-1], np.float32))
    return sparse.csr_array(
        (unit(weights, starts), columns[kept], starts), shape=(len(columns), width)
    )


def unit(weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return float32 weights of non-empty rows, scaled to unit length."""
    lengths = np.sqrt(np.add.reduceat(weights.astype(np.float64) ** 2, starts[:-1]))
    return weights / lengths.astype(np.float32).repeat(np.diff(starts))


def described(first: int, last: int) -> list[Document]:
    """Return generated documents with ids, ordered by number, and metadata."""
    kinds = ("photo", "drawing", "scan", "frame")
    return [
        Document(f"{n:08d}", metadata={"year": 1990 + n % 35, "kind": kinds[n % 4]})
        for n in range(first, last)
    ]
