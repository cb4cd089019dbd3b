"""Small vectors, a small encoder, and a brute-force search to hold the engines against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, Index

LEGS = ("lexical", "codes", "dense")
WORDS = 12
VOCABULARY = Vocabulary(f"word{i}" for i in range(WORDS))


def encode(rows: Sequence[Mapping[int, float]], patches: bool = True) -> Encoding:
    """Return all legs for rows given as word column -> weight; the others follow from those."""
    lexical = np.zeros((len(rows), WORDS), np.float32)
    for i, row in enumerate(rows):
        for column, weight in row.items():
            lexical[i, column] = weight
    dense = lexical[:, :3] - lexical[:, 3:6]
    norms = np.linalg.norm(dense, axis=1, keepdims=True)
    matrix = sparse.csr_array(lexical)
    return Encoding(
        matrix,
        (matrix.indices % 7).astype(np.int16) if patches else None,
        sparse.csr_array(lexical[:, ::3]),
        dense / np.where(norms == 0, 1, norms),
    )


def random_rows(rng: np.random.Generator, count: int) -> list[dict[int, float]]:
    """Return rows with weights in eighths, so that many scores are equal."""
    return [
        {int(c): int(rng.integers(1, 9)) / 8 for c in rng.choice(WORDS, 4, replace=False)}
        for _ in range(count)
    ]


def documents(ids: Sequence[str]) -> list[Document]:
    return [Document(name, text=f"text of {name}", metadata={"n": len(name)}) for name in ids]


def scores(leg: str, stored: Encoding, query: Encoding) -> np.ndarray:
    """Return each stored row's score in float64."""
    if leg == "dense":
        assert stored.dense is not None
        assert query.dense is not None
        return np.array([(row.astype(float) * query.dense[0]).sum() for row in stored.dense])
    rows, columns = getattr(stored, leg), getattr(query, leg)
    return (rows.astype(float) @ columns.astype(float).T).toarray()[:, 0]


def brute_force(
    leg: str, ids: Sequence[str], stored: Encoding, query: Encoding, k: int
) -> list[tuple[str, float]]:
    pairs = zip(ids, scores(leg, stored, query).tolist(), strict=True)
    found = [pair for pair in pairs if pair[1] > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]


QUERY = encode([{0: 1.0, 4: 0.5, 9: 0.25}], patches=False)


def fill(index: Index, *ids: str) -> None:
    index.add(documents(ids), encode([{0: 1.0, 3: 0.5}] * len(ids)))
    index.commit()


def found(index: Index, query: Encoding = QUERY, k: int = 100, leg: str = "lexical") -> list:
    (results,) = index.search(query, k, leg)
    assert results.scores.dtype == np.float64
    return list(zip(results.ids, results.scores.tolist(), strict=True))


class ColourEncoder:
    """Read colour words from texts, and the mean colour from images."""

    words = ("red", "green", "blue")

    def __init__(self, name: str = "colours") -> None:
        self.name = name
        self.vocabulary = Vocabulary(self.words)
        self.batches: list[int] = []

    def encode_text(self, texts: Sequence[str]) -> Encoding:
        self.batches.append(len(texts))
        return self._rows([[text.split().count(word) for word in self.words] for text in texts])

    def encode_image(self, images: Sequence[Image.Image | str | Path]) -> Encoding:
        self.batches.append(len(images))
        means = [np.asarray(image, float).mean(axis=(0, 1)) / 255 for image in images]
        rows = self._rows(means)
        return Encoding(rows.lexical, np.zeros(rows.lexical.nnz, np.int16))

    def _rows(self, rows: Sequence[Sequence[float] | np.ndarray]) -> Encoding:
        return Encoding(sparse.csr_array(np.array(rows, np.float32).reshape(-1, 3)))
