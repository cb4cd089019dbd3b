"""BM25 of documents' texts: what a word of a text weighs, and what a word of a query weighs.

A document scores, over the query's words, the sum of idf x impact, divided by the sum of idf: a
share from 0 to 1 of what a document could score that consists of these words alone. The impact of a
word that occurs tf times in a text of n words is

    tf / (tf + K1 (1 - B + B n / AVERAGE_LENGTH))

It depends on the one text only, so adding and deleting other documents changes no impact. The idf
of a word that df of N documents with text have is log(1 + (N - df + 0.5) / (df + 0.5)). Words of no
document do not count.

References:
    Robertson, Zaragoza: The Probabilistic Relevance Framework: BM25 and Beyond. 2009.
    The forms of both factors are those of Lucene's BM25Similarity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lexvla_indexer.text_words import text_words

__all__ = ["AVERAGE_LENGTH", "K1", "B", "TextRows", "used_columns", "word_weights"]

K1, B = 1.2, 0.75  # the defaults of Lucene and Elasticsearch
AVERAGE_LENGTH = 10.0  # words, about those of a caption of COCO; the same in every index


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class TextRows:
    """Hold the impacts of the words of some texts.

    Attributes:
        words: The words that occur, ascending.
        impacts: (texts, words) float32, with sorted columns.
    """

    words: list[str]
    impacts: sparse.csr_array

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextRows:
        """Return the impacts of texts, some of which may have no word."""
        told = [place for place, text in enumerate(texts) if text]  # often none, or few
        counted = [Counter(text_words(texts[place])) for place in told]
        words = sorted(set().union(*counted))
        columns = {word: column for column, word in enumerate(words)}
        sizes = np.array([len(own) for own in counted], np.int64)
        starts = np.zeros(len(texts) + 1, np.int64)
        starts[1:][told] = sizes
        np.cumsum(starts, out=starts)
        indices = np.array([columns[word] for own in counted for word in own], np.int32)
        often = np.array([count for own in counted for count in own.values()], np.float64)
        lengths = np.repeat([own.total() for own in counted], sizes)
        weights = often / (often + K1 * (1 - B + B * lengths / AVERAGE_LENGTH))
        parts = (weights.astype(np.float32), indices, starts)
        impacts = sparse.csr_array(parts, shape=(len(texts), len(words)))
        impacts.sort_indices()
        return cls(words, impacts)

    @classmethod
    def stack(cls, parts: Sequence[TextRows]) -> TextRows:
        """Concatenate rows; at least one part."""
        words = sorted(set().union(*(part.words for part in parts)))
        columns = {word: column for column, word in enumerate(words)}
        matrices = []
        for part in parts:
            # Ascending words have ascending columns: the rows stay sorted.
            moved = np.array([columns[word] for word in part.words], np.int32)
            own = part.impacts
            arrays = (own.data, moved[own.indices], own.indptr)
            matrices.append(sparse.csr_array(arrays, shape=(own.shape[0], len(words))))
        return cls(words, sparse.csr_array(sparse.vstack(matrices, format="csr")))

    def __getitem__(self, rows: slice | np.ndarray) -> TextRows:
        """Return some rows with the words that occur in these."""
        impacts, kept = used_columns(self.impacts[rows])
        return TextRows([self.words[column] for column in kept.tolist()], impacts)


def used_columns(rows: sparse.csr_array) -> tuple[sparse.csr_array, np.ndarray]:
    """Return rows without their empty columns, and the numbers of the other columns."""
    kept, columns = np.unique(rows.indices, return_inverse=True)
    arrays = (rows.data, columns.astype(np.int32), rows.indptr)
    return sparse.csr_array(arrays, shape=(rows.shape[0], len(kept))), kept


def idf(documents: int, frequencies: np.ndarray) -> np.ndarray:
    """Return the idf of words, float64; 0 for words of no document.

    Args:
        documents: How many documents have text.
        frequencies: (words) int: in how many of them each word is.
    """
    rare = np.log1p((documents - frequencies + 0.5) / (frequencies + 0.5))
    return np.where(frequencies > 0, rare, 0.0)


def word_weights(documents: int, frequencies: np.ndarray) -> np.ndarray:
    """Return each word's share of the sum of idf, (words) float64; arguments are those of `idf`."""
    weights = idf(documents, frequencies)
    return weights / (weights.sum() or 1.0)
