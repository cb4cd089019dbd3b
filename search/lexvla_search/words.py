"""Words as people write and see them, over the columns of a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla.text_normalisation import normalise_text
from lexvla.vocabulary import Vocabulary

__all__ = ["SHOWN_WORDS", "PlainWords", "column_of", "columns_of", "strongest"]

SHOWN_WORDS = 16  # a document's strongest words, which people see, ban and require


def columns_of(vocabulary: Vocabulary, word: str) -> frozenset[int]:
    """Return all columns that people see as this word, however it is typed.

    A vocabulary may hold ``face`` as a word and as a piece of words; both read as "face".

    Raises:
        InputError: The vocabulary has no such word.
    """
    columns = _columns(vocabulary).get(_plain(word))
    if columns is None:
        raise InputError(word, "the vocabulary has no such word")
    return columns


def column_of(vocabulary: Vocabulary, word: str) -> int:
    """Return the one column that a word as people type it stands for; see `columns_of`."""
    column = vocabulary.find(word.strip())
    return min(columns_of(vocabulary, word)) if column is None else column


def strongest(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the columns of the 16 greatest weights, greatest first; equal weights by column.

    Args:
        columns: (n) int, sorted.
        weights: (n) float.
    """
    return columns[np.argsort(-weights, kind="stable")[:SHOWN_WORDS]]


class PlainWords:
    """Encode texts without a model: the words that the vocabulary has, each of weight 1.

    Args:
        vocabulary: The known words.
        encoder: If it has ``encode_words``, a word becomes its row of the codebook instead.
    """

    def __init__(self, vocabulary: Vocabulary, encoder: Encoder | None = None) -> None:
        self.vocabulary = vocabulary
        self.name = "plain words" if encoder is None else encoder.name
        self._encode_words: Any = getattr(encoder, "encode_words", None)

    def encode_text(self, texts: Sequence[str]) -> Encoding:
        """Return the sum of each text's words as a unit row, empty if none of them is known."""
        rows = [self._row(text) for text in texts]
        return Encoding(sparse.csr_array(sparse.vstack(rows, format="csr", dtype=np.float32)))

    def encode_image(self, images: Sequence[Image.Image | str | Path]) -> Encoding:
        """Raise `UnsupportedError`: pixels need a model."""
        raise UnsupportedError("a query without a model reads words only; an image needs a model")

    def _row(self, text: str) -> sparse.csr_array:
        row = np.zeros((1, len(self.vocabulary)), np.float64)
        words = re.findall(r"\w+", normalise_text(text))
        found = [self.vocabulary.find(word) for word in words]
        known = [(w, c) for w, c in zip(words, found, strict=True) if c is not None]
        if known and callable(self._encode_words):
            row += self._encode_words([word for word, _ in known]).lexical.sum(axis=0)
        else:
            for _, column in known:
                row[0, column] += 1
        return sparse.csr_array(row / (np.linalg.norm(row) or 1.0))


@lru_cache(maxsize=4)
def _columns(vocabulary: Vocabulary) -> dict[str, frozenset[int]]:
    columns: dict[str, list[int]] = {}
    for column in range(len(vocabulary)):
        columns.setdefault(_plain(vocabulary.word(column)), []).append(column)
    return {word: frozenset(own) for word, own in columns.items()}


def _plain(word: str) -> str:
    return normalise_text(word).casefold()
