"""Words as people write and see them, and the columns of a vocabulary."""

from __future__ import annotations

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
from lexvla.known_words import KnownWords, fold
from lexvla.text_normalisation import normalise_text
from lexvla.vocabulary import Vocabulary
from lexvla_search.typed_words import WORD, did_you_mean

__all__ = ["PlainWords", "column_of", "columns_of", "known_words"]


def columns_of(vocabulary: Vocabulary, word: str) -> frozenset[int]:
    """Return all columns that people see as this word, in any case, with or without accents.

    A vocabulary may hold ``face`` as a word and as a piece of words; both read as "face".
    `InputError`, which suggests near words, if it has no such word.
    """
    columns = _columns(vocabulary).get(_plain(word))
    if columns is None:
        meant = did_you_mean("; ", known_words(vocabulary).nearest(_plain(word)))
        raise InputError(word, f"the vocabulary has no such word{meant}")
    return columns


def column_of(vocabulary: Vocabulary, word: str) -> int:
    """Return the one column that a typed word stands for; see `columns_of`."""
    column = vocabulary.find(word.strip())
    return min(columns_of(vocabulary, word)) if column is None else column


class PlainWords:
    """Encode texts without a model: the words that the vocabulary has, each of weight 1.

    If `encoder` has ``encode_words``, a word becomes its row of the codebook instead.
    """

    def __init__(self, vocabulary: Vocabulary, encoder: Encoder | None = None) -> None:
        self.vocabulary = vocabulary
        self.known_words = known_words(vocabulary)
        self.name = "plain words" if encoder is None else encoder.name
        self._encode_words: Any = getattr(encoder, "encode_words", None)

    def encode_text(self, texts: Sequence[str]) -> Encoding:
        """Return the sum of each text's words as a unit row; empty if no word is known."""
        rows = [self._row(text) for text in texts]
        return Encoding(sparse.csr_array(sparse.vstack(rows, format="csr", dtype=np.float32)))

    def encode_image(self, images: Sequence[Image.Image | str | Path]) -> Encoding:
        """Raise `UnsupportedError`: pixels need a model."""
        raise UnsupportedError("a query without a model reads words only; an image needs a model")

    def _row(self, text: str) -> sparse.csr_array:
        row = np.zeros((1, len(self.vocabulary)), np.float64)
        words = [word for word in WORD.findall(normalise_text(text)) if word in self.known_words]
        if words and callable(self._encode_words):
            row += self._encode_words(words).lexical.sum(axis=0)
        else:
            for word in words:
                row[0, column_of(self.vocabulary, word)] += 1
        return sparse.csr_array(row / (np.linalg.norm(row) or 1.0))


@lru_cache(maxsize=4)
def known_words(vocabulary: Vocabulary) -> KnownWords:
    """Return the words of a vocabulary."""
    return KnownWords(_columns(vocabulary))


@lru_cache(maxsize=4)
def _columns(vocabulary: Vocabulary) -> dict[str, frozenset[int]]:
    columns: dict[str, list[int]] = {}
    for column in range(len(vocabulary)):
        columns.setdefault(_plain(vocabulary.word(column)), []).append(column)
    return {word: frozenset(own) for word, own in columns.items()}


def _plain(word: str) -> str:
    return fold(normalise_text(word))
