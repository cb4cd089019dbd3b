"""Questions to one commit by one leg: queries as integers, scores back as products."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Results
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.legs import Leg
from lexvla_indexer.lucene.fields import FIELD_OF, ID, impact_terms
from lexvla_indexer.lucene.reader import Snapshot, escaped
from lexvla_indexer.lucene.scoring import LuceneExplanation, error_bound, explained, query_weights
from lexvla_indexer.lucene.selection import any_of

__all__ = ["Answers", "Words"]


class Words:
    """Write the terms of a leg's columns, as documents and as queries have them.

    Args:
        vocabulary: The terms; of codes, the column numbers.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @cached_property
    def indexed(self) -> list[str]:
        """The terms as they stand in the index."""
        return impact_terms(self.vocabulary)

    @cached_property
    def queried(self) -> list[str]:
        """The terms as Lucene's query parser reads them."""
        return [escaped(term) for term in self.indexed]


class Answers:
    """Ask a commit by one leg.

    Args:
        snapshot: The commit.
        leg: One that Lucene searches.
        words: Its terms.
        quantizer: How the documents' weights became integers; ``None`` if they count as they are.
        longest: The greatest length of a document's impacts; ``None`` if unknown.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        leg: Leg,
        words: Words,
        quantizer: ImpactQuantizer | None,
        longest: float | None,
    ) -> None:
        self._snapshot = snapshot
        self._field = FIELD_OF[leg]
        self._words = words
        self._quantizer = quantizer
        self._longest = longest
        self._step = 1.0 if quantizer is None else quantizer.step

    def top(self, row: sparse.csr_array, k: int, chosen: Any) -> Results:
        """Return the k best documents for one row, of those that a query of Lucene chooses."""
        if not row.nnz or not self._snapshot.count:
            return Results([], np.empty(0))
        weights, scale = query_weights(row, self._longest)
        hits = self._snapshot.top(self._query(row, weights), row.nnz, k, chosen)
        scores = np.array([score for _, score in hits], np.float64)
        return Results([name for name, _ in hits], scores * (self._step / scale))

    def bound(self, row: sparse.csr_array) -> float:
        """Return how far scores for one row can be from the exact products."""
        return error_bound(row, query_weights(row, self._longest), self._quantizer)

    def explain(self, row: sparse.csr_array, name: str) -> LuceneExplanation:
        """Take one document's score for one row apart.

        Raises:
            UnknownDocumentError: There is no such document.
        """
        number, _ = self._snapshot.known_places([name])[name]
        if not row.nnz:
            return LuceneExplanation(name, 0.0, (), "")
        weights, scale = query_weights(row, self._longest)
        query = self._query(row, weights)
        tree, text = self._snapshot.explain(query, number)
        hits = self._snapshot.top(query, row.nnz, 1, any_of(ID, [name]))
        score = hits[0][1] if hits else 0.0
        columns = row.indices.tolist()
        indexed = [self._words.indexed[column] for column in columns]
        names = [self._words.vocabulary.terms[column] for column in columns]
        integers = dict(zip(indexed, weights.tolist(), strict=True))
        written = dict(zip(indexed, names, strict=True))
        return explained(name, score, tree, text, integers, written, (1 / scale, self._step))

    def _query(self, row: sparse.csr_array, weights: np.ndarray) -> Any:
        terms = [self._words.queried[column] for column in row.indices.tolist()]
        return self._snapshot.query(self._field, terms, weights.tolist())
